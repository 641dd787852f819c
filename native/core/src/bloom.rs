//! The bloom of a block's logs: which addresses and topics may have been logged (Yellow Paper 4.3.1).
//!
//! Every address and topic costs a keccak256 of 20 or 32 bytes, four for a token transfer, so they are hashed side by side.
//! What the log before had in the same place is in the bloom already: a run of one token's transfers repeats its address and
//! its event.

use alloy_primitives::{Bloom, Log};

use crate::hash::keccak256_many;

pub fn bloom_of<'a>(logs: impl Iterator<Item = &'a Log>) -> Bloom {
    let mut inputs: Vec<&[u8]> = Vec::new();
    let mut before: Option<&Log> = None;
    for log in logs {
        if before.is_none_or(|before| before.address != log.address) {
            inputs.push(log.address.as_slice());
        }
        let topics = before.map_or(&[][..], |before| before.topics());
        let new = log.topics().iter().enumerate().filter(|(place, topic)| topics.get(*place) != Some(topic));
        inputs.extend(new.map(|(_, topic)| topic.as_slice()));
        before = Some(log);
    }
    let mut bloom = Bloom::ZERO;
    keccak256_many(&inputs).iter().for_each(|digest| bloom.m3_2048_hashed(digest));
    bloom
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy_primitives::{Address, B256, Bytes, keccak256};

    #[test]
    fn it_is_the_bloom_of_each_log_by_itself() {
        for count in [0, 1, 2, 3, 50_u8] {
            let logs: Vec<Log> = (0..count)
                .map(|number| {
                    // Runs that repeat an address, an event or nothing, with none to four topics.
                    let topics = (0..number % 5).map(|place| match place {
                        0 => B256::repeat_byte(number / 20),
                        _ => keccak256([number, place]),
                    });
                    Log::new_unchecked(Address::repeat_byte(number / 10), topics.collect(), Bytes::new())
                })
                .collect();
            let mut expected = Bloom::ZERO;
            logs.iter().for_each(|log| expected.accrue_log(log));
            assert_eq!(bloom_of(logs.iter()), expected, "{count} logs");
        }
    }
}
