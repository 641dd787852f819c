//! Reads that execute: `eth_call` and `eth_estimateGas`, with geth's semantics, over any state held.

use alloy_eips::eip2930::{AccessList, AccessListItem};
use alloy_eips::eip7702::{Authorization, RecoveredAuthorization, SignedAuthorization};
use alloy_primitives::{Address, Bytes, Log, TxKind, U256};

use crate::block::{BlockEnv, Chain};
use crate::codec::Reader;
use crate::error::{CoreError, Result};
use crate::evm::{Executed, Machine, NotExecuted, Relaxed, Status, Unsigned, intrinsic_gas};
use crate::state::{BlockState, View};
use crate::transaction::recover_authority;

/// Gas of a plain transfer.
const TRANSFER_GAS: u64 = 21_000;
/// EIP-150: what a call with value lends its callee.
const CALL_STIPEND: u64 = 2_300;
/// The search stops when the bounds are this close, in thousandths of the upper one (geth's 1.5 %).
const ESTIMATE_TOLERANCE_PERMILLE: u64 = 15;

#[derive(Debug, Clone)]
pub struct CallResult {
    pub status: Status,
    pub gas_used: u64,
    /// Gas limit that suffices (estimates only).
    pub gas: u64,
    pub output: Bytes,
    pub logs: Vec<Log>,
}

impl CallResult {
    fn refused(reason: String) -> Self {
        Self { status: Status::Halt(reason), gas_used: 0, gas: 0, output: Bytes::new(), logs: Vec::new() }
    }
}

/// The request: a map of from, to, gas, gasPrice, value, input, accessList and authorizationList; every key may be absent
/// or nil. An authorization is [chain id, address, nonce, y parity, r, s].
#[derive(Debug, Clone)]
pub struct CallRequest {
    from: Address,
    to: TxKind,
    gas: Option<u64>,
    gas_price: u128,
    value: U256,
    input: Bytes,
    access_list: AccessList,
    authorizations: Vec<RecoveredAuthorization>,
}

impl CallRequest {
    /// # Errors
    /// `Malformed` for an unknown key or a value of the wrong form.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut request = Self {
            from: Address::ZERO,
            to: TxKind::Create,
            gas: None,
            gas_price: 0,
            value: U256::ZERO,
            input: Bytes::new(),
            access_list: AccessList::default(),
            authorizations: Vec::new(),
        };
        let mut reader = Reader::new(bytes);
        for _ in 0..reader.map()? {
            let key = reader.text()?;
            if !reader.nil() {
                request.set(key, &mut reader)?;
            }
        }
        reader.finish()?;
        Ok(request)
    }

    fn set(&mut self, key: &str, reader: &mut Reader<'_>) -> Result<()> {
        match key {
            "from" => self.from = reader.address()?,
            "to" => self.to = TxKind::Call(reader.address()?),
            "gas" => self.gas = Some(reader.uint()?),
            "gasPrice" => self.gas_price = reader.uint()?.into(),
            "value" => self.value = reader.u256()?,
            "input" => self.input = reader.bytes()?.to_vec().into(),
            "accessList" => {
                for _ in 0..reader.array()? {
                    reader.array_of(2)?;
                    let address = reader.address()?;
                    let keys = (0..reader.array()?).map(|_| reader.hash()).collect::<Result<_>>()?;
                    self.access_list.0.push(AccessListItem { address, storage_keys: keys });
                }
            }
            "authorizationList" => {
                for _ in 0..reader.array()? {
                    self.authorizations.push(recover_authority(&read_authorization(reader)?));
                }
            }
            other => return Err(CoreError::Malformed(format!("call has no field {other:?}"))),
        }
        Ok(())
    }

    fn with_gas(&self, gas_limit: u64) -> Unsigned {
        Unsigned {
            caller: self.from,
            to: self.to,
            gas_limit,
            gas_price: self.gas_price,
            value: self.value,
            input: self.input.clone(),
            access_list: self.access_list.clone(),
            authorizations: self.authorizations.clone(),
            ..Unsigned::default()
        }
    }
}

fn read_authorization(reader: &mut Reader<'_>) -> Result<SignedAuthorization> {
    reader.array_of(6)?;
    let inner = Authorization { chain_id: reader.u256()?, address: reader.address()?, nonce: reader.uint()? };
    let parity = reader.small()?;
    Ok(SignedAuthorization::new_unchecked(inner, parity, reader.u256()?, reader.u256()?))
}

/// One machine serves all tries of an estimate: nothing is ever committed to its state.
struct Simulator {
    machine: Machine<'static, BlockState>,
}

impl Simulator {
    fn new(view: View, chain: &Chain, env: &BlockEnv, request: &CallRequest) -> Self {
        // A call that names no price is not asked to pay the base fee.
        let relaxed = Relaxed { account_checks: true, base_fee: request.gas_price == 0 };
        Self { machine: Machine::new(BlockState::new(view), chain, env, relaxed) }
    }

    /// # Errors
    /// Only when the state fails; a refused call is a result.
    fn run(&mut self, request: &CallRequest, gas: u64) -> Result<Result<Executed, String>> {
        match self.machine.simulate(request.with_gas(gas)) {
            Ok(executed) => Ok(Ok(executed)),
            Err(NotExecuted::Invalid(reason)) => Ok(Err(reason)),
            Err(NotExecuted::Failed(error)) => Err(error),
        }
    }

    fn succeeds(&mut self, request: &CallRequest, gas: u64) -> Result<bool> {
        Ok(self.run(request, gas)?.is_ok_and(|executed| executed.is_success()))
    }
}

fn result_of(executed: Executed, gas: u64) -> CallResult {
    CallResult {
        status: executed.status,
        gas_used: executed.gas_used,
        gas,
        output: executed.output,
        logs: executed.logs,
    }
}

pub fn call(view: View, chain: &Chain, env: &BlockEnv, request: &CallRequest) -> Result<CallResult> {
    let gas = request.gas.unwrap_or(env.gas_limit);
    let outcome = Simulator::new(view, chain, env, request).run(request, gas)?;
    Ok(outcome.map_or_else(CallResult::refused, |executed| result_of(executed, 0)))
}

/// The least gas limit, within the tolerance, with which the call succeeds; a call that fails at the most it may use
/// gives its failure instead.
pub fn estimate_gas(view: View, chain: &Chain, env: &BlockEnv, request: &CallRequest) -> Result<CallResult> {
    let mut simulator = Simulator::new(view, chain, env, request);
    let most = match affordable_gas(&mut simulator, env, request)? {
        Ok(most) => most,
        Err(reason) => return Ok(CallResult::refused(reason)),
    };
    if most >= TRANSFER_GAS
        && is_plain_transfer(&mut simulator, request)?
        && let Ok(executed) = simulator.run(request, TRANSFER_GAS)?
        && executed.is_success()
    {
        return Ok(result_of(executed, TRANSFER_GAS));
    }
    let executed = match simulator.run(request, most)? {
        Err(_) if is_gas_shortage(request, most) => return Ok(exceeds_allowance(most)),
        Err(reason) => return Ok(CallResult::refused(reason)),
        Ok(executed) => executed,
    };
    match &executed.status {
        Status::Success => {}
        Status::Halt(reason) if reason == "out of gas" => return Ok(exceeds_allowance(most)),
        _ => return Ok(result_of(executed, 0)),
    }
    let gas = search(&mut simulator, request, &executed, most)?;
    Ok(result_of(executed, gas))
}

fn exceeds_allowance(most: u64) -> CallResult {
    CallResult::refused(format!("gas required exceeds allowance ({most})"))
}

fn is_gas_shortage(request: &CallRequest, gas: u64) -> bool {
    let (intrinsic, floor) =
        intrinsic_gas(&request.input, request.to.is_create(), &request.access_list, request.authorizations.len());
    gas < intrinsic.max(floor)
}

fn is_plain_transfer(simulator: &mut Simulator, request: &CallRequest) -> Result<bool> {
    match request.to {
        TxKind::Call(to)
            if request.input.is_empty() && request.access_list.is_empty() && request.authorizations.is_empty() =>
        {
            Ok(!simulator.machine.state().has_code(&to)?)
        }
        _ => Ok(false),
    }
}

/// The upper bound: the request's gas or the block's, less when the sender's balance pays for less.
fn affordable_gas(simulator: &mut Simulator, env: &BlockEnv, request: &CallRequest) -> Result<Result<u64, String>> {
    let most = request.gas.filter(|gas| *gas >= TRANSFER_GAS).unwrap_or(env.gas_limit);
    if request.gas_price == 0 {
        return Ok(Ok(most));
    }
    let balance = simulator.machine.state().balance(&request.from)?;
    let Some(available) = balance.checked_sub(request.value) else {
        return Ok(Err("insufficient funds for transfer".into()));
    };
    let allowance = available / U256::from(request.gas_price);
    Ok(Ok(u64::try_from(allowance).map_or(most, |allowance| most.min(allowance))))
}

/// Binary search between what was used and what suffices, started near the likely answer.
fn search(simulator: &mut Simulator, request: &CallRequest, executed: &Executed, most: u64) -> Result<u64> {
    let (mut low, mut high) = (executed.gas_used.saturating_sub(1), most);
    // What 63/64 forwarding, refunds and the stipend usually need on top of what was used.
    let spent = u128::from(executed.gas_used + executed.gas_refunded + CALL_STIPEND);
    let likely = u64::try_from(spent * 64 / 63).unwrap_or(high);
    if likely < high {
        if simulator.succeeds(request, likely)? { high = likely } else { low = likely }
    }
    while low.saturating_add(1) < high {
        if (high - low).saturating_mul(1000) < high.saturating_mul(ESTIMATE_TOLERANCE_PERMILLE) {
            break;
        }
        // Most calls need little more than the lower bound: do not let a huge block limit steer the search.
        let middle = (low + (high - low) / 2).min(low.saturating_mul(2).max(1));
        if simulator.succeeds(request, middle)? { high = middle } else { low = middle }
    }
    Ok(high)
}
