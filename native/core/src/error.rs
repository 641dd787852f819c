//! The errors of the core, one type per answer a caller can act on.

use std::fmt;

/// Why the core refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CoreError {
    /// The block breaks a validity rule: vote against it.
    InvalidBlock(String),
    /// The parent (or the block named) is not among the states held here: fetch it first.
    UnknownParent(String),
    /// The state asked for is older than the history kept, or was never known.
    MissingState(String),
    /// Bytes that do not decode, or an argument outside its domain.
    Malformed(String),
    /// The core found itself in a state its rules exclude.
    Internal(String),
}

impl fmt::Display for CoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidBlock(text) => write!(f, "invalid block: {text}"),
            Self::UnknownParent(text) => write!(f, "unknown parent: {text}"),
            Self::MissingState(text) => write!(f, "missing state: {text}"),
            Self::Malformed(text) => write!(f, "malformed input: {text}"),
            Self::Internal(text) => write!(f, "internal error: {text}"),
        }
    }
}

impl std::error::Error for CoreError {}

pub type Result<T, E = CoreError> = std::result::Result<T, E>;
