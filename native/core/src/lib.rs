//! Shardyard's native core: everything that must be fast and everything that must be exact, free of Python and of I/O.
//!
//! It decides how transactions are read and who sent them (`transaction`), what a block does to the state (`block`, with
//! revm behind `evm`), how cross-shard messages leave and arrive (`receipt`, `gateway`, `outbox`, `delivery`), how the
//! state is kept over forks (`state`) and committed to (`lthash`, `merkle`, `bloom`), and what a valid signature is (`bls`).
//! The binding crate beside this one only translates types.

pub mod access_list;
pub mod batch;
pub mod block;
pub mod bloom;
pub mod bls;
pub mod call;
pub mod codec;
pub mod core;
pub mod delivery;
pub mod error;
pub mod evm;
pub mod gateway;
pub mod hash;
pub mod ingress;
pub mod ledger;
pub mod lthash;
pub mod mempool;
pub mod merkle;
mod near;
pub mod outbox;
pub mod parallel;
pub mod places;
pub mod pool;
pub mod raw;
pub mod receipt;
mod seats;
pub mod signer;
pub mod state;
pub mod transaction;
pub mod transfer;
