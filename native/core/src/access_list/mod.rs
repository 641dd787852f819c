//! Block access lists (EIP-7928): every account and slot that a block looked at, and what each item left where it changed
//! something.
//!
//! Index 0 is what the protocol does before the first item, deliveries have indices 1..r, transactions those after them,
//! and what closes the block stands at the index after the last item's. Only net changes of an index are listed: what an
//! item put back is a read. A transaction that the builder left out looked at nothing.
//!
//! `log` gathers what engines saw, `build` makes the list of it, the same bytes whichever engine ran; `encoding` is its form
//! in RLP, which has one way to be read. Where it differs from the EIP is said in docs/protocol.md.

mod build;
mod encoding;
mod log;

use alloy_primitives::{Address, B256, Bytes, U256, keccak256};
use smallvec::SmallVec;

pub use build::build;
pub use encoding::{MAX_ACCESS_LIST_BYTES, decode, encode};
pub use log::{AccessLog, Change, Numbered, Places};

use crate::error::{CoreError, Result};

/// What a location holds from an index on; mostly it changes once.
pub type Changes<T> = SmallVec<[(u32, T); 1]>;

/// One account of a list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AccountAccess {
    pub address: Address,
    pub storage_changes: Vec<(U256, Changes<U256>)>,
    pub storage_reads: Vec<U256>,
    pub balance_changes: Changes<U256>,
    pub nonce_changes: Changes<u64>,
    pub code_changes: Changes<Bytes>,
}

/// The value before item `index`, if the block has changed it by then.
pub fn before<T>(changes: &[(u32, T)], index: u32) -> Option<&T> {
    let place = changes.partition_point(|(changed, _)| *changed < index);
    place.checked_sub(1).map(|last| &changes[last].1)
}

/// A list by address.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AccessList {
    pub accounts: Vec<AccountAccess>,
}

impl AccessList {
    pub fn account(&self, address: &Address) -> Option<&AccountAccess> {
        let place = self.accounts.binary_search_by(|account| account.address.cmp(address)).ok()?;
        Some(&self.accounts[place])
    }

    /// # Errors
    /// `InvalidBlock` naming the first account and index in which `found`, what execution makes of the block, differs.
    pub fn check(&self, found: &Self) -> Result<()> {
        let mut pairs = self.accounts.iter().zip(&found.accounts);
        match pairs.find(|(given, found)| given != found) {
            Some((given, found)) if given.address == found.address => {
                Err(differs(given.address, &given.differs_at(found)))
            }
            Some((given, found)) if given.address < found.address => {
                Err(differs(given.address, "is listed, and no item looked at it"))
            }
            Some((_, found)) => Err(differs(found.address, "is missing, and an item looked at it")),
            None => {
                let shared = self.accounts.len().min(found.accounts.len());
                match (self.accounts.get(shared), found.accounts.get(shared)) {
                    (Some(given), _) => Err(differs(given.address, "is listed, and no item looked at it")),
                    (_, Some(found)) => Err(differs(found.address, "is missing, and an item looked at it")),
                    (None, None) => Ok(()),
                }
            }
        }
    }
}

fn differs(address: Address, what: &str) -> CoreError {
    CoreError::InvalidBlock(format!("access list: {address} {what}"))
}

/// The lowest index at which two histories part.
fn parts_at<T: PartialEq>(given: &[(u32, T)], found: &[(u32, T)]) -> Option<u32> {
    if given == found {
        return None;
    }
    let shared = given.iter().zip(found).take_while(|(given, found)| given == found).count();
    [given.get(shared), found.get(shared)].into_iter().flatten().map(|(index, _)| *index).min()
}

impl AccountAccess {
    pub fn has_changes(&self) -> bool {
        let is_unchanged = self.storage_changes.is_empty() && self.balance_changes.is_empty();
        !is_unchanged || !self.nonce_changes.is_empty() || !self.code_changes.is_empty()
    }

    fn differs_at(&self, found: &Self) -> String {
        let fields = [
            ("balance", parts_at(&self.balance_changes, &found.balance_changes)),
            ("nonce", parts_at(&self.nonce_changes, &found.nonce_changes)),
            ("code", parts_at(&self.code_changes, &found.code_changes)),
            ("storage", self.storage_differs_at(found)),
        ];
        let first = fields.into_iter().filter_map(|(name, index)| Some((index?, name))).min();
        match first {
            Some((index, name)) => format!("has another {name} at index {index} than execution gives"),
            None => "has other storage reads than execution gives".into(),
        }
    }

    fn storage_differs_at(&self, found: &Self) -> Option<u32> {
        let one_way = |left: &Self, right: &Self| {
            let unlike = left.storage_changes.iter().filter_map(|(slot, changes)| {
                let place = right.storage_changes.binary_search_by_key(slot, |(slot, _)| *slot);
                parts_at(changes, place.map_or(&[][..], |place| &right.storage_changes[place].1))
            });
            unlike.min()
        };
        one_way(self, found).into_iter().chain(one_way(found, self)).min()
    }
}

/// What the header commits to.
pub fn hash(encoded: &[u8]) -> B256 {
    keccak256(encoded)
}
