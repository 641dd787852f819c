//! What a block did to a vector's transaction, and whether that is what the vector says.

use alloy_primitives::{Address, B256, Bytes, Log, keccak256};
use shardyard_core::block::BlockResult;
use shardyard_core::codec::{Reader, Writer};
use shardyard_core::error::{CoreError, Result};

use crate::vector::Expected;

/// One vector in one mode; `reason` is empty when it passed.
#[derive(Debug, Clone)]
pub struct Report {
    pub test: String,
    pub fork: String,
    /// Of data, gas limit and value.
    pub indexes: [usize; 3],
    pub mode: &'static str,
    pub reason: String,
    /// Workers that executed the block; 0 when it ran in order.
    pub workers: u64,
}

/// [[test, fork, data, gas, value, mode, reason, workers]…]
pub fn encode_reports(reports: &[Report]) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.array(reports.len());
    for report in reports {
        writer.array(8).text(&report.test).text(&report.fork);
        report.indexes.iter().for_each(|index| {
            writer.uint(*index as u64);
        });
        writer.text(report.mode).text(&report.reason).uint(report.workers);
    }
    writer.finish()
}

/// What became of one transaction of a block.
#[derive(Debug)]
pub enum Fate {
    Refused(String),
    Executed(Vec<Log>),
}

impl Fate {
    /// # Errors
    /// When the outcomes are not what the executor encodes.
    pub fn of(result: &BlockResult, place: usize) -> Result<Self> {
        if let Some((_, reason)) = result.skipped.iter().find(|(index, _)| *index as usize == place) {
            return Ok(Self::Refused(reason.clone()));
        }
        let position = result.included.iter().position(|index| *index as usize == place);
        let position = position.ok_or_else(|| CoreError::Internal(format!("transaction {place} vanished")))?;
        let mut reader = Reader::new(&result.outcomes);
        for _ in 0..reader.array()?.min(position) {
            read_outcome(&mut reader)?;
        }
        Ok(Self::Executed(read_outcome(&mut reader)?))
    }

    fn logs(&self) -> &[Log] {
        match self {
            Self::Refused(_) => &[],
            Self::Executed(logs) => logs,
        }
    }

    /// Why this is not what was expected; the root of the state that it left is the caller's to make.
    pub fn complaint(&self, expected: &Expected, root: B256) -> Option<String> {
        match (self, &expected.expect_exception) {
            (Self::Refused(reason), None) => return Some(format!("refused ({reason}), expected to execute")),
            (Self::Executed(_), Some(exception)) => return Some(format!("executed, expected {exception}")),
            (Self::Refused(reason), Some(exception)) if !is_reason(reason, exception) => {
                return Some(format!("refused ({reason}), expected {exception}"));
            }
            _ => {}
        }
        if root != expected.hash.0 {
            return Some(format!("state root {root}, expected {}", expected.hash.0));
        }
        let logs = keccak256(alloy_rlp::encode(self.logs().to_vec()));
        (logs != expected.logs.0).then(|| format!("logs hash {logs}, expected {}", expected.logs.0))
    }
}

/// The words of our refusals for the exceptions that tests name; alternatives are separated by `|`.
fn is_reason(reason: &str, exception: &str) -> bool {
    exception.split('|').any(|name| {
        let words: &[&str] = match name.trim_start_matches("TransactionException.") {
            "INTRINSIC_GAS_TOO_LOW" => &["intrinsic gas too low", "floor data gas cost"],
            "INSUFFICIENT_ACCOUNT_FUNDS" | "GASLIMIT_PRICE_PRODUCT_OVERFLOW" => &["insufficient funds", "out of range"],
            "SENDER_NOT_EOA" => &["sender not an eoa"],
            "INITCODE_SIZE_EXCEEDED" => &["max initcode size exceeded"],
            "INSUFFICIENT_MAX_FEE_PER_GAS" => &["max fee per gas less than block base fee"],
            "PRIORITY_GREATER_THAN_MAX_FEE_PER_GAS" => &["max priority fee per gas higher than max fee per gas"],
            "NONCE_IS_MAX" => &["nonce has max value"],
            "GAS_ALLOWANCE_EXCEEDED" => &["gas limit reached"],
            // The other names have no words that wallets match on: any refusal will do.
            _ => return true,
        };
        words.iter().any(|words| reason.contains(words))
    })
}

fn read_outcome(reader: &mut Reader<'_>) -> Result<Vec<Log>> {
    reader.array_of(10)?;
    for _ in 0..5 {
        reader.uint()?;
    }
    reader.bytes()?;
    let mut logs = Vec::new();
    for _ in 0..reader.array()? {
        reader.array_of(3)?;
        let address: Address = reader.address()?;
        let topics = (0..reader.array()?).map(|_| reader.hash()).collect::<Result<_>>()?;
        logs.push(Log::new_unchecked(address, topics, Bytes::copy_from_slice(reader.bytes()?)));
    }
    for _ in 0..3 {
        reader.bytes()?;
    }
    Ok(logs)
}
