//! The only module that speaks to revm, whose API changes with every release.
//!
//! It maps our transactions, block environment and state to revm's, runs user transactions, deliveries and system calls,
//! and translates what comes back, refusals in geth's words. The chains follow Prague (P1); the state tests that Ethereum
//! publishes name revisions of their own.

mod foresight;
mod journal;
mod mappings;
mod steps;
mod tx;

use std::fmt;
use std::marker::PhantomData;

use alloy_eips::eip2930::AccessList;
use alloy_primitives::{Address, B256, Bytes, KECCAK256_EMPTY, Log, TxKind, U256, address};
use revm::context::result::{EVMError, ExecutionResult, HaltReason, InvalidTransaction, OutOfGasError};
use revm::context::{BlockEnv as RevmBlock, CfgEnv, Context, ContextSetters, Journal, JournalTr, Transaction as _};
use revm::context_interface::block::BlobExcessGasAndPrice;
use revm::context_interface::cfg::GasParams;
use revm::database_interface::DBErrorMarker;
use revm::handler::{FrameResult, Handler, MainnetHandler, pre_execution};
use revm::interpreter::InitialAndFloorGas;
use revm::state::{AccountInfo, EvmState};
use revm::{Database, ExecuteEvm, MainBuilder, MainnetEvm, SystemCallEvm};

use crate::block::{BlockEnv, Chain};
use crate::error::{CoreError, Result};
use crate::gateway::GATEWAY;
use crate::state::{Account, BlockState, Sink, Source};
use crate::transaction::Transaction;

pub use journal::{NOWHERE, Numbering};
use mappings::Mappings;
pub use revm::bytecode::Bytecode;
use revm::bytecode::opcode;
pub use revm::primitives::hardfork::SpecId;
pub use steps::Stepper;
use tx::Tx;
pub use tx::Unsigned;

/// The rules of Ethereum that a chain follows, with what they ask of a block and our blocks do not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revision {
    pub spec: SpecId,
    /// EIP-4844; our chains carry no blobs.
    pub excess_blob_gas: u64,
    /// Read by contracts before the merge only.
    pub difficulty: U256,
}

impl Revision {
    pub const PRAGUE: Self = Self { spec: SpecId::PRAGUE, excess_blob_gas: 0, difficulty: U256::ZERO };

    /// Whether an account that was there before the transaction keeps its storage whatever the transaction does
    /// (EIP-6780). Only then is a block's state a set of independent locations.
    pub fn keeps_storage(&self) -> bool {
        self.spec.is_enabled_in(SpecId::CANCUN)
    }
}

/// EIP-2935: block hashes as state.
pub const HISTORY: Address = address!("0x0000F90827F1C53a10cb7A02335B175320002935");
const HISTORY_WINDOW: u64 = 8191;
/// EIP-4788.
pub const BEACON_ROOTS: Address = address!("0x000F3df6D732807Ef1319fB7B8bB8522d0Beac02");
/// EIP-7002 and EIP-7251: run at the end of a block; this chain has no use for the requests they answer.
pub const REQUEST_CONTRACTS: [Address; 2] =
    [address!("0x00000961Ef480Eb55e80D19ad83579A64c007002"), address!("0x0000BBdDc7CE488642fb579F8B00f3a590007251")];

/// (intrinsic gas, EIP-7623 floor) of a transaction.
pub fn intrinsic_gas(input: &[u8], is_create: bool, access_list: &AccessList, authorizations: usize) -> (u64, u64) {
    let (accounts, keys) = (access_list.len() as u64, access_list.storage_keys_count() as u64);
    let gas = GasParams::new_spec(Revision::PRAGUE.spec).initial_tx_gas(
        input,
        is_create,
        accounts,
        keys,
        authorizations as u64,
        None,
    );
    (gas.initial_total_gas(), gas.floor_gas())
}

/// A state error on its way through revm.
#[derive(Debug)]
pub struct StateError(pub CoreError);

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for StateError {}
impl DBErrorMarker for StateError {}

impl From<CoreError> for StateError {
    fn from(error: CoreError) -> Self {
        Self(error)
    }
}

/// Any source of state as revm's database.
#[derive(Debug)]
pub struct Db<S> {
    source: S,
    mappings: Mappings,
}

/// EIP-7702.
const SETS_CODE: u8 = 4;
/// What KECCAK256 costs whatever it hashes.
const KECCAK_GAS: u16 = 30;

impl<S: Source> Database for Db<S> {
    type Error = StateError;

    fn basic(&mut self, address: Address) -> Result<Option<AccountInfo>, StateError> {
        Ok(self.source.account(&address)?.map(|account| AccountInfo {
            balance: account.balance,
            nonce: account.nonce,
            code_hash: account.code_hash,
            account_id: None,
            code: None,
        }))
    }

    fn code_by_hash(&mut self, code_hash: B256) -> Result<Bytecode, StateError> {
        if code_hash == KECCAK256_EMPTY { Ok(Bytecode::default()) } else { Ok(self.source.code(&code_hash)?) }
    }

    fn storage(&mut self, address: Address, index: U256) -> Result<U256, StateError> {
        Ok(self.source.slot(&address, &index)?)
    }

    /// BLOCKHASH reads what EIP-2935 keeps in the state, so every node answers alike.
    fn block_hash(&mut self, number: u64) -> Result<B256, StateError> {
        let slot = U256::from(number % HISTORY_WINDOW);
        Ok(self.source.slot(&HISTORY, &slot)?.into())
    }
}

/// Mainnet's rules without the payment to the beneficiary: every transaction makes one, so the block adds them up and
/// credits them outside the EVM. Inside it, each would depend on the one before.
struct Unrewarded<'t, S, J>(PhantomData<(&'t (), S, J)>);

impl<'t, S: Source, J: JournalOf<S>> Handler for Unrewarded<'t, S, J> {
    type Evm = Inner<'t, S, J>;
    type Error = EVMError<StateError>;
    type HaltReason = HaltReason;

    fn reward_beneficiary(&self, _: &mut Self::Evm, _: &mut FrameResult) -> Result<(), Self::Error> {
        Ok(())
    }

    fn validate_initial_tx_gas(&self, evm: &mut Self::Evm) -> Result<InitialAndFloorGas, Self::Error> {
        match known_gas(evm) {
            Some(gas) => gas.map_err(EVMError::Transaction),
            None => MainnetHandler::default().validate_initial_tx_gas(evm),
        }
    }
}

/// What a transaction costs before it runs, if that was found out when it was read.
fn known_gas<S: Source, J: JournalOf<S>>(
    evm: &Inner<'_, S, J>,
) -> Option<Result<InitialAndFloorGas, InvalidTransaction>> {
    let Tx::Signed(transaction) = &evm.ctx.tx else { return None };
    // Whoever reads a transaction counts by the rules of our chains, and authorizations as they were signed.
    if evm.ctx.cfg.spec != Revision::PRAGUE.spec || transaction.tx_type == SETS_CODE {
        return None;
    }
    let ((initial_gas, gas_floor), gas_limit) = (transaction.intrinsic_gas(), transaction.gas_limit);
    Some(if initial_gas > gas_limit {
        Err(InvalidTransaction::CallGasCostMoreThanGasLimit { initial_gas, gas_limit })
    } else if gas_floor > gas_limit {
        Err(InvalidTransaction::GasFloorMoreThanGasLimit { gas_floor, gas_limit })
    } else {
        Ok(InitialAndFloorGas::new(initial_gas, gas_floor))
    })
}

/// How an execution ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    Success,
    Revert,
    Halt(String),
}

/// An execution whose writes are not yet in the state.
#[derive(Debug)]
pub struct Executed {
    pub status: Status,
    pub gas_used: u64,
    /// What EIP-3529 gave back; already subtracted from `gas_used`.
    pub gas_refunded: u64,
    pub logs: Vec<Log>,
    pub output: Bytes,
    pub created: Option<Address>,
    writes: EvmState,
}

impl Executed {
    pub fn is_success(&self) -> bool {
        self.status == Status::Success
    }

    /// Whether the account is gone with all it held, a payment of this transaction's fee included.
    pub fn destroys(&self, address: &Address) -> bool {
        self.writes.get(address).is_some_and(|account| account.is_touched() && account.is_selfdestructed())
    }

    /// Writes the changes; what is left is an empty map for `Machine::recycle`.
    pub fn apply(mut self, sink: &mut impl Sink) -> Result<EvmState> {
        for (address, mut account) in self.writes.drain() {
            if !account.is_touched() {
                continue;
            }
            if account.is_selfdestructed() {
                sink.set_account(&address, None)?;
                sink.wipe_storage(&address)?;
                continue;
            }
            if account.is_created() {
                sink.wipe_storage(&address)?;
            }
            let code_hash = account.info.code_hash;
            let before = account.original_info_mut();
            let (is_recoded, spent) = (code_hash != before.code_hash, (before.nonce, before.balance));
            // Contracts bring code when they are created, accounts when they delegate (EIP-7702).
            let is_new = account.is_created() || is_recoded;
            if let Some(code) = account.info.code.take().filter(|code| is_new && !code.is_empty()) {
                sink.add_code(code_hash, code);
            }
            let info = &account.info;
            let present = Account { nonce: info.nonce, balance: info.balance, code_hash };
            if is_new || spent != (info.nonce, info.balance) {
                sink.set_account(&address, Some(present))?;
            }
            for (slot, value) in account.changed_storage_slots() {
                sink.set_slot(&address, slot, value.present_value)?;
            }
        }
        Ok(self.writes)
    }
}

/// Why a transaction did not execute at all.
#[derive(Debug)]
pub enum NotExecuted {
    /// The transaction cannot be in this block; geth's words.
    Invalid(String),
    Failed(CoreError),
}

impl From<CoreError> for NotExecuted {
    fn from(error: CoreError) -> Self {
        Self::Failed(error)
    }
}

/// Which checks a simulated call skips; a block skips none.
#[derive(Debug, Clone, Copy, Default)]
pub struct Relaxed {
    pub account_checks: bool,
    pub base_fee: bool,
}

/// Where an EVM keeps what its transactions change.
pub trait JournalOf<S: Source>: JournalTr<Database = Db<S>, State = EvmState> {}

impl<S: Source, J: JournalTr<Database = Db<S>, State = EvmState>> JournalOf<S> for J {}

type Mainnet<'t, S, J = Journal<Db<S>>> = Context<RevmBlock, Tx<'t>, CfgEnv, Db<S>, J, ()>;
type Inner<'t, S, J> = MainnetEvm<Mainnet<'t, S, J>>;

/// One EVM over the state of one block, for transactions that outlive it.
pub struct Machine<'t, S: Source, J: JournalOf<S> = Journal<Db<S>>> {
    evm: Inner<'t, S, J>,
    base_fee: u64,
}

impl<'t, S: Source, J: JournalOf<S>> Machine<'t, S, J> {
    pub fn new(state: S, chain: &Chain, env: &BlockEnv, relaxed: Relaxed) -> Self {
        let Revision { spec, excess_blob_gas, difficulty } = chain.revision;
        let block = RevmBlock {
            number: U256::from(env.number),
            beneficiary: env.beneficiary,
            timestamp: U256::from(env.timestamp),
            gas_limit: env.gas_limit,
            basefee: env.base_fee,
            difficulty,
            prevrandao: Some(env.prevrandao),
            blob_excess_gas_and_price: Some(BlobExcessGasAndPrice::new_with_spec(excess_blob_gas, spec)),
            ..RevmBlock::default()
        };
        let context: Mainnet<'t, S, J> = Context::new(Db { source: state, mappings: Mappings::default() }, spec);
        let context = context.with_block(block).modify_cfg_chained(|cfg| {
            cfg.chain_id = chain.chain_id;
            cfg.set_max_blobs_per_tx(if spec == SpecId::PRAGUE { 9 } else { 6 });
            cfg.disable_nonce_check = relaxed.account_checks;
            cfg.disable_eip3607 = relaxed.account_checks;
            cfg.disable_block_gas_limit = relaxed.account_checks;
            cfg.disable_base_fee = relaxed.base_fee;
        });
        let mut evm = context.build_mainnet();
        evm.instruction.insert_instruction(opcode::KECCAK256, mappings::instruction(), KECCAK_GAS);
        Self { evm, base_fee: env.base_fee }
    }

    pub fn state(&mut self) -> &mut S {
        &mut self.evm.ctx.journaled_state.db_mut().source
    }

    fn geth_words(&self, reason: &InvalidTransaction) -> String {
        let tx = &self.evm.ctx.tx;
        let caller = tx.caller();
        match reason {
            InvalidTransaction::NonceTooLow { tx, state } => {
                format!("nonce too low: address {caller}, tx: {tx} state: {state}")
            }
            InvalidTransaction::NonceTooHigh { tx, state } => {
                format!("nonce too high: address {caller}, tx: {tx} state: {state}")
            }
            InvalidTransaction::NonceOverflowInTransaction => {
                format!("nonce has max value: address {caller}, nonce: {}", tx.nonce())
            }
            InvalidTransaction::LackOfFundForMaxFee { fee, balance } => {
                format!("insufficient funds for gas * price + value: address {caller} have {balance} want {fee}")
            }
            InvalidTransaction::OverflowPaymentInTransaction => {
                format!(
                    "insufficient funds for gas * price + value: address {caller} required balance exceeds 256 bits"
                )
            }
            InvalidTransaction::GasPriceLessThanBasefee => format!(
                "max fee per gas less than block base fee: address {caller}, maxFeePerGas: {}, baseFee: {}",
                tx.gas_price(),
                self.base_fee
            ),
            InvalidTransaction::PriorityFeeGreaterThanMaxFee => format!(
                "max priority fee per gas higher than max fee per gas: address {caller}, maxPriorityFeePerGas: {}, \
                 maxFeePerGas: {}",
                tx.max_priority_fee_per_gas().unwrap_or_default(),
                tx.gas_price()
            ),
            InvalidTransaction::CallGasCostMoreThanGasLimit { initial_gas, gas_limit } => {
                format!("intrinsic gas too low: have {gas_limit}, want {initial_gas}")
            }
            InvalidTransaction::GasFloorMoreThanGasLimit { gas_floor, gas_limit } => {
                format!("insufficient gas for floor data gas cost: have {gas_limit}, want {gas_floor}")
            }
            InvalidTransaction::RejectCallerWithCode => format!("sender not an eoa: address {caller}"),
            InvalidTransaction::CallerGasLimitMoreThanBlock => "gas limit reached".into(),
            InvalidTransaction::CreateInitCodeSizeLimit => "max initcode size exceeded".into(),
            other => other.to_string(),
        }
    }
}

impl<'t, S: Source> Machine<'t, S> {
    pub fn into_state(self) -> S {
        self.evm.ctx.journaled_state.database.source
    }

    /// Runs a user transaction; nothing is written until `commit`.
    ///
    /// # Errors
    /// `Invalid` when it cannot be in this block.
    pub fn transact(&mut self, transaction: &'t Transaction) -> Result<Executed, NotExecuted> {
        self.run(Tx::Signed(transaction))
    }

    /// What revm does with these transactions by itself, one after the other on one journal, as its `transact_many_finalize`
    /// does: results and changed accounts are kept, but there are no outcomes, no skips, no fast path, no versions. The
    /// measure that benchmarks are held against.
    pub fn run_bare(
        &mut self,
        transactions: impl Iterator<Item = &'t Transaction>,
    ) -> Result<(Vec<ExecutionResult>, EvmState), NotExecuted> {
        let mut results = Vec::with_capacity(transactions.size_hint().1.unwrap_or_default());
        for transaction in transactions {
            match self.evm.transact_one(Tx::Signed(transaction)) {
                Ok(result) => results.push(result),
                Err(EVMError::Transaction(reason)) => return Err(NotExecuted::Invalid(self.geth_words(&reason))),
                Err(other) => return Err(NotExecuted::Failed(failure(other))),
            }
        }
        Ok((results, self.evm.finalize()))
    }

    /// Takes a map back that an execution's writes were in, so that the next finds room without asking the allocator.
    pub fn recycle(&mut self, empty: EvmState) {
        self.evm.ctx.journaled_state.inner.state = empty;
    }

    /// Runs a call that nobody signed, for reads.
    ///
    /// # Errors
    /// `Invalid` when even a relaxed check refuses it.
    pub fn simulate(&mut self, call: Unsigned) -> Result<Executed, NotExecuted> {
        self.run(Unsigned { chain_id: Some(self.evm.ctx.cfg.chain_id), ..call }.into())
    }

    fn run(&mut self, tx: Tx<'t>) -> Result<Executed, NotExecuted> {
        self.evm.ctx.set_tx(tx);
        let result = Unrewarded(PhantomData).run(&mut self.evm);
        let writes = self.evm.finalize();
        match result {
            Ok(result) => Ok(translate(result, writes)),
            Err(EVMError::Transaction(reason)) => Err(NotExecuted::Invalid(self.geth_words(&reason))),
            Err(other) => Err(NotExecuted::Failed(failure(other))),
        }
    }

    /// Runs a delivery's call: from the gateway, with gas for execution alone, free of fees, nonces and intrinsic gas.
    /// The gateway's balance must already hold `value`.
    pub fn deliver(&mut self, target: Address, value: U256, input: Bytes, gas: u64) -> Result<Executed> {
        let to = TxKind::Call(target);
        let call = Unsigned { caller: GATEWAY, gas_limit: gas, to, value, input, ..Unsigned::default() };
        self.evm.ctx.set_tx(call.into());
        // Warms precompiles and the beneficiary, as for any transaction, and the caller, whose value moves.
        let loaded = pre_execution::load_accounts::<_, EVMError<StateError>>(&mut self.evm)
            .and_then(|()| self.evm.ctx.journaled_state.load_account(GATEWAY).map(drop).map_err(EVMError::Database));
        let result = loaded.and_then(|()| MainnetHandler::default().run_system_call(&mut self.evm));
        let writes = self.evm.finalize();
        let result = result.map_err(failure)?;
        let (spent, refund) = (result.gas().total_gas_spent(), result.gas().inner_refunded());
        let mut executed = translate(result, writes);
        // A system call leaves the refund uncapped; EIP-3529 allows a fifth of what was spent.
        executed.gas_refunded = if executed.is_success() { refund.min(spent / 5) } else { 0 };
        executed.gas_used = spent - executed.gas_refunded;
        Ok(executed)
    }
}

impl<S: Source> Machine<'_, BlockState<S>> {
    /// A system call of the protocol; a contract that is absent or fails changes nothing.
    pub fn system_call(&mut self, contract: Address, input: Bytes) -> Result<()> {
        if !self.state().has_code(&contract)? {
            return Ok(());
        }
        let result = self.evm.system_call_one(contract, input);
        let writes = self.evm.finalize();
        let executed = translate(result.map_err(failure)?, writes);
        if executed.is_success() { self.commit(executed) } else { Ok(()) }
    }

    /// Writes an execution's changes into the block's state.
    pub fn commit(&mut self, executed: Executed) -> Result<()> {
        let empty = executed.apply(self.state())?;
        self.recycle(empty);
        Ok(())
    }
}

fn failure(error: EVMError<StateError>) -> CoreError {
    match error {
        EVMError::Database(StateError(error)) => error,
        other => CoreError::Internal(format!("EVM: {other}")),
    }
}

fn translate(result: ExecutionResult, writes: EvmState) -> Executed {
    let created = result.created_address();
    let (status, gas, logs, output) = match result {
        ExecutionResult::Success { gas, logs, output, .. } => (Status::Success, gas, logs, output.into_data()),
        ExecutionResult::Revert { gas, output, .. } => (Status::Revert, gas, Vec::new(), output),
        ExecutionResult::Halt { reason, gas, .. } => (Status::Halt(halt_words(&reason)), gas, Vec::new(), Bytes::new()),
    };
    let (gas_used, gas_refunded) = (gas.tx_gas_used(), gas.final_refunded());
    Executed { status, gas_used, gas_refunded, logs, output, created, writes }
}

/// geth's names of the ways an execution can fail.
fn halt_words(reason: &HaltReason) -> String {
    match reason {
        HaltReason::OutOfGas(OutOfGasError::InvalidOperand) => "gas uint64 overflow".into(),
        HaltReason::OutOfGas(_) => "out of gas".into(),
        HaltReason::OpcodeNotFound | HaltReason::NotActivated => "invalid opcode".into(),
        HaltReason::InvalidFEOpcode => "invalid opcode: INVALID".into(),
        HaltReason::InvalidJump => "invalid jump destination".into(),
        HaltReason::StackUnderflow => "stack underflow".into(),
        HaltReason::StackOverflow => "stack limit reached".into(),
        HaltReason::OutOfOffset => "return data out of bounds".into(),
        HaltReason::CreateCollision => "contract address collision".into(),
        HaltReason::NonceOverflow => "nonce uint64 overflow".into(),
        HaltReason::CreateContractSizeLimit => "max code size exceeded".into(),
        HaltReason::CreateContractStartingWithEF => "invalid code: must not begin with 0xef".into(),
        HaltReason::CreateInitCodeSizeLimit => "max initcode size exceeded".into(),
        HaltReason::StateChangeDuringStaticCall | HaltReason::CallNotAllowedInsideStatic => "write protection".into(),
        HaltReason::OutOfFunds | HaltReason::OverflowPayment => "insufficient balance for transfer".into(),
        HaltReason::CallTooDeep => "max call depth exceeded".into(),
        other => format!("{other:?}"),
    }
}
