//! Raw transactions as one blob with the end of each: how they travel from ingress through the mempool into a block body.

use crate::codec::Writer;
use crate::error::{CoreError, Result};
use crate::hash::pieces;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RawList {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl RawList {
    /// # Errors
    /// `Malformed` when the offsets do not cut the blob.
    pub fn cut(bytes: &[u8], offsets: &[usize]) -> Result<Self> {
        pieces(bytes, offsets).map_err(CoreError::Malformed)?;
        Ok(Self { bytes: bytes.to_vec(), ends: offsets[1..].to_vec() })
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn ends(&self) -> &[usize] {
        &self.ends
    }

    pub fn push(&mut self, raw: &[u8]) {
        self.bytes.extend_from_slice(raw);
        self.ends.push(self.bytes.len());
    }

    pub fn extend(&mut self, other: &Self) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&other.bytes);
        self.ends.extend(other.ends.iter().map(|end| start + end));
    }

    pub fn get(&self, index: usize) -> Option<&[u8]> {
        let end = *self.ends.get(index)?;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        self.bytes.get(start..end)
    }

    pub fn pieces(&self) -> Vec<&[u8]> {
        (0..self.len()).filter_map(|index| self.get(index)).collect()
    }

    /// The transactions at `indices`, in that order; what is not there is passed over.
    pub fn pick(&self, indices: &[u32]) -> Self {
        let mut picked = Self::default();
        indices.iter().filter_map(|index| self.get(*index as usize)).for_each(|raw| picked.push(raw));
        picked
    }

    /// The canonical form of a block's body: one blob, and the end of each transaction in it.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::with_capacity(16 + self.bytes.len() + 5 * self.ends.len());
        writer.array(2).bytes(&self.bytes).array(self.ends.len());
        for end in &self.ends {
            writer.uint(*end as u64);
        }
        writer.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_pushed_comes_back_and_can_be_picked() {
        let mut list = RawList::default();
        [&b"one"[..], b"three", b"x"].iter().for_each(|raw| list.push(raw));
        assert_eq!((list.len(), list.get(1), list.get(3)), (3, Some(&b"three"[..]), None));
        assert_eq!(list.pick(&[2, 0, 9]).pieces(), [&b"x"[..], b"one"]);
        let mut twice = list.clone();
        twice.extend(&list);
        assert_eq!(twice.get(4), Some(&b"three"[..]));
        assert_eq!(RawList::cut(b"onethreex", &[0, 3, 8, 9]).unwrap(), list);
        assert!(RawList::cut(b"onethreex", &[0, 3, 8]).is_err());
    }

    #[test]
    fn an_empty_list_encodes_to_an_empty_body() {
        assert_eq!(RawList::default().encode(), [0x92, 0xc4, 0x00, 0x90]);
    }
}
