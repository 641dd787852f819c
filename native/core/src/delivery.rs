//! Inbound messages (X5, X7, X8): which ones a block takes, what each does, and the reply it earns.
//!
//! Every wei of a message's escrow goes to exactly one of: the target, the reply, a refund, claimable, the beneficiary,
//! or the fire. A failed delivery leaves no trace but its reply and its gas.

use alloy_primitives::{Address, Bytes, Log, U256};

use crate::block::BlockEnv;
use crate::error::{CoreError, Result};
use crate::evm::{Executed, Machine, Status};
use crate::gateway::{
    Emission, GATEWAY, TRANSFER_GAS, claimable_slot, emitted, interoperable_address, is_acceptance,
    receive_message_call, receive_reply_call,
};
use crate::outbox::weigh;
use crate::receipt::{FIRST_CHAIN_ID, Kind, Origin, Receipt, Reply, reply_id};
use crate::state::{BlockState, Sink, Source};

/// What a delivery left behind for the block's accounts.
#[derive(Debug, Default)]
pub struct Delivered {
    pub is_success: bool,
    pub gas_used: u64,
    pub tip: U256,
    pub logs: Vec<Log>,
    /// Sequence numbers not yet assigned; messages the target sent, then the reply.
    pub emitted: Vec<Receipt>,
}

/// The gas that a receipt reserves in its destination's inbox (X5).
pub fn inbox_gas(receipt: &Receipt) -> u64 {
    if receipt.kind == Kind::Transfer { TRANSFER_GAS } else { receipt.gas_limit }
}

/// How a call from the gateway ended.
struct Attempt {
    is_success: bool,
    used: u64,
    data: Vec<u8>,
    logs: Vec<Log>,
    emitted: Vec<Receipt>,
}

impl Attempt {
    fn refused(reason: &str) -> Self {
        Self { is_success: false, used: 0, data: reason.into(), logs: Vec::new(), emitted: Vec::new() }
    }
}

pub struct Delivery<'a, 't, S: Source> {
    pub machine: &'a mut Machine<'t, BlockState<S>>,
    pub env: &'a BlockEnv,
    pub shard: u32,
    /// The receipt that is delivered.
    pub receipt: &'a Receipt,
    /// Bytes of receipts that what it runs may emit, its own reply not counted (X10).
    pub room: u64,
}

impl<S: Source> Delivery<'_, '_, S> {
    /// # Errors
    /// Only when the state fails or an amount leaves 256 bits; a delivery that fails is a result.
    pub fn run(&mut self) -> Result<Delivered> {
        match self.receipt.kind {
            Kind::Transfer => self.transfer(),
            Kind::Call => self.call(),
            Kind::Result | Kind::Bounce => self.reply(),
            // Meant for the beacon. A captured shard may still send one here: it must not halt this shard.
            Kind::Deposit | Kind::Exit | Kind::Govern | Kind::Withdrawal => self.refuse(),
        }
    }

    fn transfer(&mut self) -> Result<Delivered> {
        let escrow = self.receipt.escrow()?;
        self.machine.state().credit(&self.receipt.target, escrow)?;
        Ok(Delivered { is_success: true, gas_used: TRANSFER_GAS, ..Delivered::default() })
    }

    fn call(&mut self) -> Result<Delivered> {
        let receipt = self.receipt;
        let is_expired = receipt.deadline != 0 && self.env.beacon_height > receipt.deadline;
        let attempt = if is_expired {
            Attempt::refused("expired")
        } else if !self.machine.state().has_code(&receipt.target)? {
            Attempt::refused("no code")
        } else {
            let source = FIRST_CHAIN_ID + u64::from(receipt.src);
            let sender = interoperable_address(source, &receipt.sender);
            let input = receive_message_call(&receipt.id, &sender, &receipt.payload);
            self.attempt(receipt.target, receipt.value, input, |executed| is_acceptance(&executed.output))?
        };
        let tip = self.compute_tip(attempt.used);
        let refund = self.refund(attempt.used);
        let mut emitted = attempt.emitted;
        emitted.push(self.answer(attempt.is_success, refund, attempt.data)?);
        Ok(Delivered { is_success: attempt.is_success, gas_used: attempt.used, tip, logs: attempt.logs, emitted })
    }

    /// X7: exactly one RESULT or BOUNCE per CALL, paid for by the sender beforehand.
    fn answer(&self, ok: bool, refund: U256, data: Vec<u8>) -> Result<Receipt> {
        let receipt = self.receipt;
        let returned = if ok { U256::ZERO } else { receipt.value };
        let value =
            returned.checked_add(refund).ok_or_else(|| CoreError::Malformed("a reply exceeds 256 bits".into()))?;
        Ok(Receipt {
            kind: if ok { Kind::Result } else { Kind::Bounce },
            src: self.shard,
            dst: receipt.src,
            seq: 0,
            id: reply_id(&receipt.id),
            origin: self.deeper(),
            parent_id: receipt.id,
            sender: receipt.target,
            target: receipt.sender,
            value,
            gas_limit: receipt.reply_gas,
            gas_price: receipt.gas_price,
            reply_gas: 0,
            refund_to: receipt.refund_to,
            deadline: 0,
            payload: Reply { ok, refund, data }.encode(),
        })
    }

    /// X8: a RESULT or BOUNCE comes home. It never bounces: what the sender cannot take becomes claimable.
    fn reply(&mut self) -> Result<Delivered> {
        let receipt = self.receipt;
        let reply = Reply::decode(&receipt.payload).ok().filter(|reply| reply.refund <= receipt.value);
        let Some(reply) = reply else {
            return self.refuse();
        };
        let amount = receipt.value - reply.refund;
        let mut delivered = Delivered { is_success: true, ..Delivered::default() };
        if self.machine.state().has_code(&receipt.target)? {
            let input = receive_reply_call(&receipt.parent_id, reply.ok, &reply.data);
            let attempt = self.attempt(receipt.target, amount, input, |_| true)?;
            if !attempt.is_success {
                self.make_claimable(amount)?;
            }
            delivered = Delivered {
                is_success: attempt.is_success,
                gas_used: attempt.used,
                tip: self.compute_tip(attempt.used),
                logs: attempt.logs,
                emitted: attempt.emitted,
            };
        } else {
            self.machine.state().credit(&receipt.refund_to, amount)?;
        }
        let unused = self.refund(delivered.gas_used);
        let state = self.machine.state();
        state.credit(&receipt.refund_to, unused)?;
        state.credit(&receipt.refund_to, reply.refund)?;
        Ok(delivered)
    }

    /// Runs nothing: all that the message carries becomes claimable.
    fn refuse(&mut self) -> Result<Delivered> {
        let escrow = self.receipt.escrow()?;
        self.make_claimable(escrow)?;
        Ok(Delivered::default())
    }

    /// Runs the target with `value`. Unless it succeeds and `accepts` agrees, nothing of it stays (X8).
    fn attempt(
        &mut self,
        target: Address,
        value: U256,
        input: Bytes,
        accepts: impl Fn(&Executed) -> bool,
    ) -> Result<Attempt> {
        self.machine.state().credit(&GATEWAY, value)?;
        let executed = self.machine.deliver(target, value, input, self.receipt.gas_limit)?;
        let used = executed.gas_used.min(self.receipt.gas_limit);
        let emission = Emission { src: self.shard, origin: self.deeper(), parent_id: self.receipt.id };
        let messages = match &executed.status {
            Status::Success if !accepts(&executed) => Err(b"wrong answer".to_vec()),
            Status::Success => match emitted(&executed.logs, &emission) {
                // Nobody chose to run this in this block (X5), so it must not make the block too large to be crosslinked.
                Ok(messages) if weigh(&messages) > self.room => Err(b"outbox full".to_vec()),
                messages => messages.map_err(|error| error.to_string().into_bytes()),
            },
            Status::Revert => Err(executed.output.to_vec()),
            Status::Halt(reason) => Err(reason.clone().into_bytes()),
        };
        match messages {
            Ok(messages) => {
                let (data, logs) = (executed.output.to_vec(), executed.logs.clone());
                self.machine.commit(executed)?;
                Ok(Attempt { is_success: true, used, data, logs, emitted: messages })
            }
            Err(data) => {
                self.machine.state().debit(&GATEWAY, value)?;
                Ok(Attempt { is_success: false, used, data, logs: Vec::new(), emitted: Vec::new() })
            }
        }
    }

    fn deeper(&self) -> Origin {
        Origin { depth: self.receipt.origin.depth.saturating_add(1), ..self.receipt.origin }
    }

    fn refund(&self, used: u64) -> U256 {
        U256::from(self.receipt.gas_limit - used) * U256::from(self.receipt.gas_price)
    }

    /// The part of the gas price above the base fee, which the block credits to the beneficiary as it does with those of
    /// transactions; the rest is credited to nobody, hence burnt.
    fn compute_tip(&self, used: u64) -> U256 {
        let price = self.receipt.gas_price;
        U256::from(used) * U256::from(price - price.min(self.env.base_fee))
    }

    fn make_claimable(&mut self, amount: U256) -> Result<()> {
        let slot = claimable_slot(&self.receipt.refund_to);
        let state = self.machine.state();
        state.credit(&GATEWAY, amount)?;
        let claimable = state.slot(&GATEWAY, &slot)?.saturating_add(amount);
        state.set_slot(&GATEWAY, &slot, claimable)
    }
}
