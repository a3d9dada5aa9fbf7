//! What models do with their logits last: labels, named probabilities. It is not trained and
//! stays in the file as it is.

use super::GraphError;
use super::context::Context;
use super::reader::{Item, Source};

/// Operators with which a tail begins, besides those that can be trained.
const BEGINNINGS: [&str; 10] = [
    "ArgMax",
    "ArgMin",
    "ArrayFeatureExtractor",
    "Binarizer",
    "Greater",
    "GreaterOrEqual",
    "LabelEncoder",
    "Round",
    "TopK",
    "ZipMap",
];

/// What the tail is computed from that a node belongs to, if it belongs to one.
///
/// # Errors
/// When the node takes something else that depends on the model's input.
pub(super) fn source(context: &Context<'_, '_>) -> Result<Option<Source>, GraphError> {
    let item = |name: &String| context.reader.names.get(name.as_str()).copied();
    let mut items = context.node.input.iter().filter_map(item);
    let begins = BEGINNINGS.contains(&context.node.op_type.as_str());
    let source = items.find_map(|item| match item {
        Item::Tail(source) => Some(source),
        Item::Value(id) if begins && context.shape(id).batched => Some(Source::Value(id)),
        Item::Squashed(index) if begins => Some(Source::Squashed(index)),
        Item::Tensor | Item::Value(_) | Item::Squashed(_) | Item::Numbers | Item::Mask(_) => None,
    });
    let Some(source) = source else { return Ok(None) };
    for name in &context.node.input {
        let fits = match item(name) {
            Some(Item::Value(id)) => {
                !context.shape(id).batched || context.reader.is_of(source, Source::Value(id))
            }
            Some(Item::Squashed(index)) => context.reader.is_of(source, Source::Squashed(index)),
            Some(Item::Tail(other)) => context.reader.is_of(source, other),
            Some(Item::Tensor | Item::Numbers | Item::Mask(_)) | None => true,
        };
        if !fits {
            return Err(context.problem(format!(
                "input {name:?} and what is computed from labels meet: only the model's last \
                 nodes may take labels, of the same logits"
            )));
        }
    }
    Ok(Some(source))
}

impl super::reader::Reader<'_> {
    /// Whether both are the same logits, with a softmax or sigmoid or without.
    fn is_of(&self, a: Source, b: Source) -> bool {
        let logits = |source| match source {
            Source::Value(id) => {
                let made = self.squashed.iter().find(|squashed| squashed.made == Some(id));
                made.map_or(id, |squashed| squashed.logits)
            }
            Source::Squashed(index) => self.squashed[index].logits,
        };
        logits(a) == logits(b)
    }
}
