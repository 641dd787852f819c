//! KECCAK256 that remembers where mappings lie.
//!
//! A contract finds an entry of a mapping by hashing 64 bytes, and mostly does so twice, to read and to write; a permutation
//! costs more than a few instructions. What is remembered is keyed by all 64 bytes, so it is right whatever it is.

use alloy_primitives::{B256, keccak256};
use revm::context::Transaction as _;
use revm::context_interface::Host;
use revm::interpreter::interpreter::EthInterpreter;
use revm::interpreter::{Instruction, InstructionContext, InstructionExecResult, instructions::system};

use super::foresight::Foresight;
use super::{JournalOf, Mainnet};
use crate::state::Source;

pub const INPUT_BYTES: usize = 64;
pub type Input = [u8; INPUT_BYTES];
/// A power of two: about what one transaction looks up, so that it stays in the nearest cache.
const ENTRIES: usize = 64;

#[derive(Debug, Default)]
pub struct Mappings {
    /// Hashes of the inputs seen last, one for each value of some of their bits.
    seen: Vec<(Input, B256)>,
    pub foresight: Foresight,
}

impl Mappings {
    /// The hash of an input; `is_new` is told of one that was neither seen nor foreseen.
    fn hash(&mut self, input: &Input, is_new: impl FnOnce(&mut Foresight)) -> B256 {
        if let Some(hash) = self.foresight.recall(input) {
            return hash;
        }
        if self.seen.is_empty() {
            self.seen = vec![([0; INPUT_BYTES], keccak256([0; INPUT_BYTES])); ENTRIES];
        }
        // Keys of mappings are addresses and numbers: what tells them apart ends either word.
        let bits = input[31] ^ input[63] ^ input[62].rotate_left(3) ^ input[30].rotate_left(3);
        let entry = &mut self.seen[usize::from(bits) % ENTRIES];
        if entry.0 != *input {
            *entry = (*input, keccak256(input));
            is_new(&mut self.foresight);
        }
        entry.1
    }
}

pub fn instruction<'t, S: Source, J: JournalOf<S>>() -> Instruction<EthInterpreter, Mainnet<'t, S, J>> {
    Instruction::new(keccak)
}

/// What is not about 64 bytes in memory that is there already, or is not paid for, is left to revm.
fn keccak<S: Source, J: JournalOf<S>>(
    context: InstructionContext<'_, Mainnet<'_, S, J>, EthInterpreter>,
) -> InstructionExecResult {
    let InstructionContext { interpreter, host } = context;
    if let [.., length, offset] = interpreter.stack.data()[..]
        && length == INPUT_BYTES
        && let Some(end) = usize::try_from(offset).ok().and_then(|offset| offset.checked_add(INPUT_BYTES))
        && end <= interpreter.memory.len()
    {
        let cost = host.gas_params().keccak256_cost(INPUT_BYTES);
        if interpreter.gas.remaining() >= cost && interpreter.gas.record_regular_cost(cost) {
            let memory = interpreter.memory.slice_len(end - INPUT_BYTES, INPUT_BYTES);
            let Some(input) = memory.first_chunk() else { return Ok(()) };
            let (contract, tx) = (&interpreter.input.target_address, &host.tx);
            let learn = |foresight: &mut Foresight| foresight.learn(contract, &tx.caller(), tx.input(), input);
            let hash = host.journaled_state.db_mut().mappings.hash(input, learn);
            drop(memory);
            let _ = interpreter.stack.pop();
            let _ = interpreter.stack.pop();
            let _ = interpreter.stack.push(hash.into());
            return Ok(());
        }
    }
    system::keccak256(InstructionContext { interpreter, host })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_that_share_an_entry_have_each_their_own_hash() {
        let mut mappings = Mappings::default();
        for round in 0..3 {
            for number in 0..1000_u64 {
                let mut input = [0; INPUT_BYTES];
                input[24..32].copy_from_slice(&number.to_be_bytes());
                input[56..].copy_from_slice(&(number * 7 % 13).to_be_bytes());
                assert_eq!(mappings.hash(&input, |_| ()), keccak256(input), "round {round}");
            }
        }
    }
}
