//! Runs Ethereum's GeneralStateTests through the executor: each vector alone in order, and inside a parallel block.
//!
//! A vector says: this transaction on this state gives this state root and these logs, or is refused. The executor is
//! asked through the same `Core::execute` as for any block; only the Merkle-Patricia root that the vectors name is made
//! here, since our chains commit to their state otherwise. `vector` reads, `filler` makes the unrelated transactions of
//! a block, `run` executes, `verdict` compares, `trie` makes the root.

mod filler;
mod run;
mod trie;
mod vector;
mod verdict;

pub use run::{Mode, run_document};
pub use verdict::{Report, encode_reports};
