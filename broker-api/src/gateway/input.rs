//! Where the input of an errand is, and whether it fits a message.

use bytes::Bytes;
use jobs::id::BlobRef;
use jobs::report::{Failure, FailureCode};
use link::blobs::BlobError;

use super::{Gateway, too_large};
use crate::error::ApiError;
use crate::store::StoreError;

/// The bytes of an input.
#[derive(Debug)]
pub(crate) enum Binary {
    /// They came with a request.
    Here(Bytes),
    /// They are read for each offer: a job may wait for a device for weeks.
    Stored(BlobRef),
}

impl Gateway {
    /// Checks that an input fits into the message in which a device gets it.
    ///
    /// # Errors
    /// [`crate::error::ApiCode::TooLarge`] with the limit.
    pub(crate) fn check_input(&self, binary: &Bytes) -> Result<(), ApiError> {
        let checked = link::publish::check_size(self.store.client(), binary.len());
        checked.map_err(|error| too_large(&error))
    }

    /// The bytes, wherever they are.
    pub(super) async fn input(&self, binary: &Binary) -> Result<Bytes, ApiError> {
        let blob = match binary {
            Binary::Here(bytes) => return Ok(bytes.clone()),
            Binary::Stored(blob) => blob,
        };
        self.store.blobs.get(blob).await.map_err(|error| {
            if matches!(error, BlobError::Unavailable { .. }) {
                return StoreError::from(error).into();
            }
            Failure::new(FailureCode::BlobUnavailable, error.to_string()).into()
        })
    }
}
