//! Data sets in folders, for agents and brokers: [`Datasets`] reads and keeps them, [`judging`]
//! says how a model does on their test examples.

pub mod failures;
mod fit;
mod folder;
pub mod judging;
mod sets;
pub mod settings;
mod sums;

pub use self::fit::check_fit;
pub use self::folder::Folder;
pub use self::sets::{DataError, Datasets, check};
pub use self::sums::Sums;
