//! SCAFFOLD's control variates on the server.

use jobs::id::BlobRef;

use super::rows::Rows;
use super::{Combiner, Start, count};
use crate::coordinator::fold::Part;
use crate::coordinator::fold::content::Expected;
use crate::coordinator::updates::values::Values;
use crate::coordinator::updates::{ReadError, Updates};

/// Values that are looked at at a time.
const BLOCK: usize = 64 * 1024;

impl Updates {
    /// Reads a change of a control variate to its end; its values are as bounded as an update's and
    /// as many as the model's.
    pub(in crate::coordinator::updates) async fn check_change(
        &self,
        change: &BlobRef,
    ) -> Result<(), ReadError> {
        let model = Expected::sent(self.ask(|fold| fold.model().clone()).await?);
        let mut values = Values::of_parameters(&self.blobs, change).await?;
        let mut left = model.layout().total_len();
        while left > 0 {
            left -= values.next(left.min(BLOCK), &model).await?.len();
        }
        values.end().await
    }

    /// Stores the server's next control variate, `c + sum (c_k' - c_k) / N`.
    pub(super) async fn move_control(
        &self,
        name: String,
        parts: &[Part],
        start: &Start,
        expected: &Expected,
    ) -> Result<BlobRef, ReadError> {
        let changes: Vec<&BlobRef> =
            parts.iter().filter_map(|part| part.control_change.as_ref()).collect();
        let share = count(start.population.max(parts.len())).recip();
        let mut coefficients = vec![share; changes.len()];
        if start.control.is_some() {
            coefficients.insert(0, 1.0);
        }
        let blobs: Vec<&BlobRef> = start.control.iter().chain(changes).collect();
        let linear = Combiner::sum(coefficients, Vec::new());
        let rows = Rows::open(self, &blobs, false, expected, None).await?;
        Ok(self.combined(name, rows, linear).await?.0)
    }
}
