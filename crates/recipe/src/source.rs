//! Places in a recipe.

use std::ops::Range;

/// Where a key or value was written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Source {
    /// A byte range of the recipe's text.
    Text(Range<usize>),
    /// The `--set` argument of this index.
    Set(usize),
    /// Nowhere: the document itself.
    Root,
}
