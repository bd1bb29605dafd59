//! Held-out measurement: accuracy, latency and concurrency, each with a bootstrap interval.
//!
//! Problems are the unit of resampling: samples of one problem are alike, and an interval over all episodes as if they
//! were independent would be too narrow. Episodes with a format error count as wrong in every accuracy and are left out
//! of the means of latency and concurrency, which have no meaning for them; their share and their kinds are reported.
//!
//! [`evaluate`] runs a model by a [`Method`], [`EpisodeLine`] is what it wrote, [`Evaluation`] is the result (JSON by serde), [`table`] sets several side by side.

mod bootstrap;
mod episode_line;
mod error;
mod evaluate;
mod gather;
mod method;
mod selection;
mod settings;
mod summary;
mod table;
#[cfg(test)]
mod testing;

pub use bootstrap::{Bootstrap, Interval};
pub use episode_line::EpisodeLine;
pub use error::{Error, Result};
pub use evaluate::evaluate;
pub use method::registry::Methods;
pub use method::{EvalProgress, Method, OpenMethod, Question, Target};
pub use settings::EvalSettings;
pub use summary::{Evaluation, Metric, summarise};
pub use table::table;
