//! Claims about contracts nobody would write: calls in calls, of which many are taken back, over accounts and slots that all
//! of them share, one transaction after the other on one journal.

use super::*;
use crate::access_list::decode;

const PROGRAMS: u8 = 14;
const FIRST: u8 = 0x60;

/// Code in the making.
#[derive(Default)]
struct Program(Vec<u8>);

impl Program {
    fn op(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn push(&mut self, bytes: &[u8]) -> &mut Self {
        self.op(&[0x5f + bytes.len() as u8]).op(bytes)
    }

    fn small(&mut self, value: u64) -> &mut Self {
        self.push(&[value as u8])
    }

    /// An account's address: a known one, the program's own, or what it keeps in a slot, a child's perhaps.
    fn address(&mut self, dice: &mut Dice) -> &mut Self {
        let address = match dice.roll(18) {
            12..15 => return self.op(&[0x30]),
            15..18 => return self.small(dice.roll(3)).op(&[0x54]),
            0 => user(dice.roll(8)),
            1 => Address::repeat_byte(0xe0 + dice.roll(3) as u8),
            2 => Address::with_last_byte(4),
            3 => contract(COUNTER),
            4 if dice.roll(10) == 0 => BENEFICIARY,
            _ => contract(FIRST + dice.roll(u64::from(PROGRAMS)) as u8),
        };
        self.push(address.as_slice())
    }

    /// SSTORE, or TSTORE, of what lies on the stack.
    fn store(&mut self, dice: &mut Dice) -> &mut Self {
        self.small(dice.roll(3)).op(&[if dice.roll(5) == 0 { 0x5d } else { 0x55 }])
    }

    /// CREATE or CREATE2; the child writes a slot, and stays, is gone or is taken back.
    fn create(&mut self, dice: &mut Dice) -> &mut Self {
        let child: &[u8] = match dice.roll(5) {
            0 => &alloy_primitives::hex!("60016000555f5ff3"),
            1 => &alloy_primitives::hex!("600160005533ff"),
            2 => &alloy_primitives::hex!("6133ff5f526002601ef3"),
            3 => &alloy_primitives::hex!("600160005530ff"),
            _ => &alloy_primitives::hex!("60016000555f5ffd"),
        };
        let (size, value) = (child.len() as u64, dice.roll(2));
        self.push(child).op(&[0x5f, 0x52]);
        if dice.roll(3) == 0 {
            return self.small(size).small(32 - size).small(value).op(&[0xf0]);
        }
        self.small(dice.roll(4)).small(size).small(32 - size).small(value).op(&[0xf5])
    }

    fn call(&mut self, dice: &mut Dice) -> &mut Self {
        self.op(&[0x5f; 4]);
        let kind = [0xf1, 0xf1, 0xf1, 0xf2, 0xf4, 0xfa][dice.roll(6) as usize];
        if kind < 0xf4 {
            self.small(dice.roll(3));
        }
        let gas = 20_000 + 8_000 * dice.roll(8) as u32;
        self.address(dice).push(&gas.to_be_bytes()).op(&[kind])
    }

    fn random(dice: &mut Dice) -> Vec<u8> {
        let mut program = Self::default();
        for _ in 0..3 + dice.roll(8) {
            match dice.roll(12) {
                0 => program.small(dice.roll(3)).store(dice),
                1 | 2 => program.small(dice.roll(3)).op(&[0x54]).small(1).op(&[0x01]).store(dice),
                3 => program.small(dice.roll(3)).op(&[0x5c]).store(dice),
                4 => program.address(dice).op(&[[0x31, 0x3f, 0x3b][dice.roll(3) as usize]]).store(dice),
                5 => program.op(&[0x47]).store(dice),
                6 => program.small(dice.roll(9)).op(&[0x5f, 0x5f, 0xa1]),
                7 => program.create(dice).small(dice.roll(3)).op(&[0x55]),
                _ => program.call(dice).store(dice),
            };
        }
        let end = (program.0.len() as u16 + 8).to_be_bytes();
        match dice.roll(9) {
            0 => program.op(&[0x5f, 0x5f, 0xfd]),
            1 => program.op(&[0xfe]),
            2 => program.address(dice).op(&[0xff]),
            // Takes itself back if it is its own caller.
            3..7 => program.op(&[0x33, 0x30, 0x14, 0x61, end[0], end[1], 0x57, 0x00, 0x5b, 0x5f, 0x5f, 0xfd]),
            _ => program.op(&[0x00]),
        };
        program.0
    }
}

fn store_with_programs(mut program: impl FnMut() -> Vec<u8>) -> Arc<Store> {
    let account = |code: Vec<u8>| serde_json::json!({ "nonce": "0x1", "balance": "0x64", "code": hex(&code), "storage": { "0x1": "0x7" } });
    store_with((0..PROGRAMS).map(|number| (contract(FIRST + number), account(program()))))
}

#[test]
fn calls_within_calls_leave_what_they_leave_in_order() {
    for seed in 0..4 {
        let mut dice = Dice(0x5eed + seed);
        let store = store_with_programs(|| Program::random(&mut dice));
        let mut workload = Workload::default();
        for n in 0..120 {
            let to = contract(FIRST + dice.roll(u64::from(PROGRAMS)) as u8);
            match dice.roll(12) {
                0 => workload.push(rich(n % 40), Call::pay(user(dice.roll(40)), 3)),
                1 => {
                    let mut authority = Address::repeat_byte(0xe0 + dice.roll(3) as u8);
                    authority[12..].copy_from_slice(&n.to_be_bytes());
                    workload.delegate(rich(n % 40), authority, 0, to);
                    workload.push(rich(41 + n % 9), Call { gas: 300_000, ..Call::to(authority) });
                }
                _ => workload.push(rich(n % 40), Call { value: dice.roll(3), gas: 600_000, ..Call::to(to) }),
            }
        }
        let digest = Case::new(&store, workload).check().expect("builders leave out what is invalid");
        assert!(digest.skipped.is_empty(), "{:?}", digest.skipped);
    }
}

#[test]
fn what_is_transient_ends_with_a_call_that_is_taken_back_and_with_its_transaction() {
    // Called by itself: TSTORE(1, 7), and takes that back. By others: calls itself, SSTORE(0, TLOAD(1) + 1 + SLOAD(0)), TSTORE(1, 9).
    let code = alloy_primitives::hex!(
        "333014602257 5f5f5f5f5f3061fffff150 60015c6001015f54015f55 600960015d 00 5b600760015d 5f5ffd"
    );
    let store = store_with_programs(|| code.to_vec());
    let mut workload = Workload::default();
    for n in 0..120 {
        workload.push(rich(n % 40), Call { gas: 300_000, ..Call::to(contract(FIRST + n as u8 % PROGRAMS)) });
    }
    let case = Case::new(&store, workload);
    let digest = case.check().expect("all are valid");
    let changes = crate::state::Changes::decode(&digest.diff).expect("a diff");
    for number in 0..PROGRAMS {
        let slot = changes.storage[&contract(FIRST + number)][&U256::ZERO];
        assert_eq!(slot, U256::from(120 / PROGRAMS + u8::from(number < 120 % PROGRAMS)), "program {number}");
    }
}

#[test]
fn what_another_transaction_created_is_not_ended() {
    let child = contract(FACTORY).create2(B256::ZERO, child_hash());
    let mut workload = Workload::default();
    workload.push(0, Call::to(contract(FACTORY)));
    for n in 1..120 {
        // It sends what it has to its caller, and stays: EIP-6780.
        workload.push(rich(n), Call { value: n % 3, gas: 100_000, ..Call::to(child) });
    }
    let digest = Case::new(&store(), workload).check().expect("all are valid");
    let changes = crate::state::Changes::decode(&digest.diff).expect("a diff");
    assert!(changes.accounts[&child].is_some_and(|account| account.has_code()));
}

#[test]
fn what_is_read_of_a_contract_that_the_block_made_is_in_no_list() {
    // Its constructor reads slot 5; calls of it read slots 5 and 6. The state holds nothing of either.
    let code = alloy_primitives::hex!("60055450 68600554506006545000 5f52 60096017f3");
    let child = user(0).create(0);
    let mut workload = Workload::default();
    workload.push(0, Call { to: None, value: 0, input: code.to_vec(), gas: 300_000 });
    // One sender: all of it runs on one journal, and in order each on its own.
    (1..120).for_each(|_| workload.push(0, Call::to(child)));
    let digest = Case::new(&store(), workload).check().expect("all are valid");
    let list = decode(&digest.access_list, u32::MAX, false).expect("lists are canonical");
    let access = list.account(&child).expect("it was called");
    assert_eq!((access.code_changes.len(), access.storage_reads.len()), (1, 0));
}
