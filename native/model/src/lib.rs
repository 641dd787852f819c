//! The protocol between the workers of a block under a model checker (shuttle): the files of the core, compiled over the
//! checker's locks and atomics, drive a small block whose items watch for what must never happen.
//!
//! `sound` is the protocol as it is, `flawed` has it once for each planted bug (`build.rs`).

mod sync;

/// The protocol as the core has it.
pub mod sound {
    use crate::sync;

    pub mod block;
    #[path = "../../../core/src/parallel/crew.rs"]
    pub mod crew;
    #[path = "../../../core/src/parallel/status.rs"]
    pub mod status;
}

/// The protocol with a bug in it.
#[allow(unused, clippy::all)]
pub mod flawed {
    include!(concat!(env!("OUT_DIR"), "/flawed.rs"));
}
