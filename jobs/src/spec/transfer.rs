//! Where updates are until the broker has read them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where the update of a device is until the broker has read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transfer {
    /// On the device, which gives it to the broker when that asks. Where a broker has to read an
    /// update more than once, or in a later round, it is stored all the same.
    #[default]
    Direct,
    /// In the object store, so that the device need not be there any more.
    Stored,
}

impl Transfer {
    const ALL: [Self; 2] = [Self::Direct, Self::Stored];

    /// The word for it in JSON and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Stored => "stored",
        }
    }
}

/// Text that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no way for updates: expected direct or stored")]
pub struct TransferError(String);

impl fmt::Display for Transfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Transfer {
    type Err = TransferError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|transfer| transfer.as_str() == text);
        found.ok_or_else(|| TransferError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_json_are_the_same_word() {
        for transfer in Transfer::ALL {
            assert_eq!(transfer.to_string().parse(), Ok(transfer));
            assert_eq!(serde_json::to_value(transfer).unwrap(), transfer.as_str());
        }
        let error = "pushed".parse::<Transfer>().unwrap_err().to_string();
        assert!(error.contains("direct or stored"), "{error}");
    }
}
