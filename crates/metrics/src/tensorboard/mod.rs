//! TensorBoard event files: `tensorboard` in the recipe's `metrics`.

mod event;
mod record;
mod sink;

pub(crate) use sink::open;
