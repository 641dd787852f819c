//! revm by itself with its own cache for a database, each transaction committed to it: what a user of the crate writes first.

use alloy_primitives::{Address, B256, U256};
pub use revm::context::TxEnv;
use revm::context::{BlockEnv as RevmBlock, Context};
use revm::context_interface::block::BlobExcessGasAndPrice;
use revm::database::{CacheDB, EmptyDB};
use revm::handler::MainnetContext;
use revm::primitives::hardfork::SpecId;
use revm::state::{AccountInfo, Bytecode};
use revm::{ExecuteCommitEvm, MainBuilder};
use shardyard_core::batch::Batch;
use shardyard_core::block::BlockEnv;

use crate::CHAIN_ID;

pub type State = CacheDB<EmptyDB>;

/// The state that an allocation describes.
pub fn state(alloc: &serde_json::Map<String, serde_json::Value>) -> State {
    let mut state = State::new(EmptyDB::default());
    let number = |value: &serde_json::Value| value.as_str().map_or(U256::ZERO, |text| text.parse().expect("a number"));
    for (address, entry) in alloc {
        let address: Address = address.parse().expect("an address");
        let code = entry["code"].as_str().map(|code| code.parse().expect("hex"));
        let info = AccountInfo { balance: number(&entry["balance"]), ..AccountInfo::default() };
        let info = AccountInfo { nonce: number(&entry["nonce"]).to(), ..info };
        let info = match code.map(Bytecode::new_raw) {
            Some(code) => AccountInfo { code_hash: code.hash_slow(), code: Some(code), ..info },
            None => info,
        };
        state.insert_account_info(address, info);
        for (slot, value) in entry["storage"].as_object().into_iter().flatten() {
            let slot = slot.parse().expect("a slot");
            state.insert_account_storage(address, slot, number(value)).expect("an empty database does not fail");
        }
    }
    state
}

/// The transactions in revm's form.
pub fn transactions(batch: &Batch) -> Vec<TxEnv> {
    let transactions = batch.entries().iter().filter_map(|entry| entry.transaction.as_deref());
    let convert = |transaction: &shardyard_core::transaction::Transaction| TxEnv {
        tx_type: transaction.tx_type,
        caller: transaction.sender,
        gas_limit: transaction.gas_limit,
        gas_price: transaction.max_fee,
        gas_priority_fee: transaction.tip,
        kind: transaction.to,
        value: transaction.value,
        data: transaction.input.clone(),
        nonce: transaction.nonce,
        chain_id: transaction.chain_id,
        ..TxEnv::default()
    };
    transactions.map(convert).collect()
}

/// Executes and commits one transaction after the other.
///
/// # Panics
/// When one is invalid: the workloads hold none.
pub fn run(state: State, env: &BlockEnv, transactions: Vec<TxEnv>) -> State {
    let block = RevmBlock {
        number: U256::from(env.number),
        beneficiary: env.beneficiary,
        timestamp: U256::from(env.timestamp),
        gas_limit: env.gas_limit,
        basefee: env.base_fee,
        prevrandao: Some(B256::ZERO),
        blob_excess_gas_and_price: Some(BlobExcessGasAndPrice::new_with_spec(0, SpecId::PRAGUE)),
        ..RevmBlock::default()
    };
    let context: MainnetContext<State> = Context::new(state, SpecId::PRAGUE);
    let context = context.with_block(block).modify_cfg_chained(|cfg| cfg.chain_id = CHAIN_ID);
    let mut evm = context.build_mainnet();
    for transaction in transactions {
        evm.transact_commit(transaction).expect("all are valid");
    }
    evm.ctx.journaled_state.database
}
