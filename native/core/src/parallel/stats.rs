//! What people may want to know of a parallel run: how often items ran, what they fought over. Never part of consensus.

use super::memory::Key;
use crate::codec::Writer;

#[derive(Debug, Default)]
pub struct RunStats {
    /// Workers that took part; 0 when the block ran in order.
    pub workers: u64,
    /// Executions of items, repeated ones included.
    pub incarnations: u64,
    /// Executions thrown away because what they had read was changed.
    pub aborts: u64,
    /// Items that ran only at their turn to commit.
    pub at_turn: u64,
    /// How often speculation did not pay and one worker went on alone.
    pub solos: u64,
    /// Locations by the aborts they caused.
    pub hottest: Vec<(Key, u32)>,
}

impl RunStats {
    pub const FIELDS: usize = 6;

    /// `hottest` is [[address, slot or nil, aborts]…].
    pub fn write(&self, writer: &mut Writer) {
        writer.text("workers").uint(self.workers).text("incarnations").uint(self.incarnations);
        writer.text("aborts").uint(self.aborts).text("at_turn").uint(self.at_turn);
        writer.text("solos").uint(self.solos).text("hottest").array(self.hottest.len());
        for (key, conflicts) in &self.hottest {
            writer.array(3);
            match key {
                Key::Account(address) => writer.bytes(address.as_slice()).nil(),
                Key::Slot(address, slot) => writer.bytes(address.as_slice()).u256(slot),
            };
            writer.uint(u64::from(*conflicts));
        }
    }
}
