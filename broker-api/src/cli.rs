//! The operator's commands, over HTTP; and `dunlin serve`.
