//! Ingress: JSON-RPC requests that only hand in signed transactions, read without an object per transaction.
//!
//! A request is taken when it is one plain `eth_sendRawTransaction` call or an array of nothing else: exactly the four
//! members, one parameter, an identifier that is null, an integer or a plain string. Whatever differs is left to the
//! general reader, which knows how to refuse it; so nothing is answered here that it would have answered otherwise.

use alloy_primitives::{B256, hex};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::raw::RawList;
use crate::transaction::MAX_TRANSACTION_BYTES;

const METHOD: &str = "eth_sendRawTransaction";
const MAX_ID_BYTES: usize = 64;
/// Integers of this many digits are exact in every reader.
const MAX_ID_DIGITS: usize = 15;

/// Signed transactions as one request brought them, with what its answer needs.
#[derive(Debug, Clone, Default)]
pub struct Submission {
    pub list: RawList,
    ids: Vec<Box<str>>,
    is_batch: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Call<'a> {
    jsonrpc: &'a str,
    #[serde(borrow)]
    id: &'a RawValue,
    method: &'a str,
    params: [&'a str; 1],
}

impl Submission {
    /// Transactions that no request brought: from a peer, a journal or another method.
    pub fn of_list(list: RawList) -> Self {
        Self { list, ids: Vec::new(), is_batch: false }
    }

    /// The submission that `body` is; none when it is anything else, or has more than `max_calls`.
    pub fn read(body: &[u8], max_calls: usize) -> Option<Self> {
        let body = std::str::from_utf8(body).ok()?.trim_matches([' ', '\t', '\r', '\n']);
        let is_batch = body.starts_with('[');
        let calls: Vec<Call<'_>> =
            if is_batch { serde_json::from_str(body).ok()? } else { vec![serde_json::from_str(body).ok()?] };
        if calls.is_empty() || calls.len() > max_calls {
            return None;
        }
        let mut submission = Self { is_batch, ..Self::default() };
        let mut raw = Vec::new();
        for call in &calls {
            let digits = call.params[0].strip_prefix("0x")?;
            let is_sized = digits.len() % 2 == 0 && (2..=2 * MAX_TRANSACTION_BYTES).contains(&digits.len());
            if call.jsonrpc != "2.0" || call.method != METHOD || !is_sized || !is_plain(call.id.get()) {
                return None;
            }
            raw.resize(digits.len() / 2, 0);
            hex::decode_to_slice(digits, &mut raw).ok()?;
            submission.list.push(&raw);
            submission.ids.push(call.id.get().into());
        }
        Some(submission)
    }

    /// The answer to the request: a hash, or why there is none, for each transaction in order.
    pub fn write_answers<'a>(&self, outcomes: impl Iterator<Item = Result<&'a B256, (i32, &'a str)>>) -> Vec<u8> {
        let mut text = Vec::with_capacity(110 * self.ids.len() + 2);
        if self.is_batch {
            text.push(b'[');
        }
        for (number, (id, outcome)) in self.ids.iter().zip(outcomes).enumerate() {
            if number > 0 {
                text.push(b',');
            }
            text.extend_from_slice(br#"{"jsonrpc":"2.0","id":"#);
            text.extend_from_slice(id.as_bytes());
            match outcome {
                Ok(hash) => {
                    text.extend_from_slice(br#","result":"0x"#);
                    let start = text.len();
                    text.resize(start + 64, 0);
                    // The buffer has exactly the length that 32 bytes need.
                    let _ = hex::encode_to_slice(hash, &mut text[start..]);
                    text.extend_from_slice(br#""}"#);
                }
                Err((code, message)) => {
                    text.extend_from_slice(br#","error":{"code":"#);
                    text.extend_from_slice(code.to_string().as_bytes());
                    text.extend_from_slice(br#","message":"#);
                    text.extend_from_slice(&serde_json::to_vec(message).unwrap_or_else(|_| b"\"\"".to_vec()));
                    text.extend_from_slice(b"}}");
                }
            }
        }
        if self.is_batch {
            text.push(b']');
        }
        text
    }
}

/// The JSON-RPC batch that hands these transactions in, numbered from 0.
pub fn write_request(raws: &[&[u8]]) -> Vec<u8> {
    let mut text = Vec::with_capacity(2 + raws.iter().map(|raw| 90 + 2 * raw.len()).sum::<usize>());
    text.push(b'[');
    for (number, raw) in raws.iter().enumerate() {
        if number > 0 {
            text.push(b',');
        }
        text.extend_from_slice(br#"{"jsonrpc":"2.0","id":"#);
        text.extend_from_slice(number.to_string().as_bytes());
        text.extend_from_slice(br#","method":"eth_sendRawTransaction","params":["0x"#);
        text.extend_from_slice(hex::encode(raw).as_bytes());
        text.extend_from_slice(br#""]}"#);
    }
    text.push(b']');
    text
}

/// Whether an identifier comes back byte for byte from every reader.
fn is_plain(id: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\';
    match id.as_bytes() {
        b"null" => true,
        [b'"', inner @ .., b'"'] => inner.len() <= MAX_ID_BYTES && inner.iter().copied().all(is_word),
        digits => digits.len() <= MAX_ID_DIGITS && digits.iter().all(u8::is_ascii_digit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(id: &str, raw: &str) -> String {
        format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{METHOD}","params":["{raw}"]}}"#)
    }

    #[test]
    fn a_batch_of_transactions_is_read_and_answered_in_order() {
        let body = format!("[{}, {}]", call("7", "0x02ff"), call("\"a\"", "0xc0"));
        let found = Submission::read(body.as_bytes(), 2).unwrap();
        assert_eq!(found.list.pieces(), [&[2, 255][..], &[0xc0]]);
        let outcomes = [Ok(&B256::ZERO), Err((-32000, "nonce too \"low\""))];
        let answer = String::from_utf8(found.write_answers(outcomes.into_iter())).unwrap();
        let zeros = "00".repeat(32);
        let first = format!(r#"{{"jsonrpc":"2.0","id":7,"result":"0x{zeros}"}}"#);
        let second = r#"{"jsonrpc":"2.0","id":"a","error":{"code":-32000,"message":"nonce too \"low\""}}"#;
        assert_eq!(answer, format!("[{first},{second}]"));
    }

    #[test]
    fn a_single_call_gets_a_single_answer() {
        let found = Submission::read(call("null", "0x01").as_bytes(), 1).unwrap();
        let answer = found.write_answers([Err((-32000, "x"))].into_iter());
        assert_eq!(answer, br#"{"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":"x"}}"#);
    }

    #[test]
    fn whatever_is_not_plain_is_left_to_the_general_reader() {
        let good = call("1", "0x01");
        let bad = [
            String::new(),
            "[]".into(),
            format!("[{good}"),
            format!("[{good}] x"),
            format!("\u{c}[{good}]"),
            format!("{good}\u{c}"),
            format!("[{good},{good},{good}]"),
            good.replace("2.0", "1.0"),
            good.replace("eth_sendRawTransaction", "eth_chainId"),
            good.replace("\"id\":1,", ""),
            good.replace("\"id\":1,", "\"id\":1,\"id\":2,"),
            good.replace("\"id\":1,", "\"id\":1,\"more\":2,"),
            good.replace("[\"0x01\"]", "[\"0x01\",1]"),
            good.replace("[\"0x01\"]", "[]"),
            good.replace("[\"0x01\"]", "{\"raw\":\"0x01\"}"),
            call("1", "0x"),
            call("1", "0x0"),
            call("1", "01"),
            call("1", "0xzz"),
            call("1", "\\u0030x01"),
            call("1.5", "0x01"),
            call("-1", "0x01"),
            call("[1]", "0x01"),
            call("true", "0x01"),
            call("\"\\u0041\"", "0x01"),
            call("\"é\"", "0x01"),
            call("1234567890123456", "0x01"),
        ];
        for body in bad {
            assert!(Submission::read(body.as_bytes(), 2).is_none(), "{body}");
        }
        assert!(Submission::read(b"[\xff]", 2).is_none());
    }

    #[test]
    fn a_written_request_is_read_back() {
        let body = write_request(&[b"one", b"two"]);
        assert_eq!(Submission::read(&body, 2).unwrap().list.pieces(), [b"one", b"two"]);
    }
}
