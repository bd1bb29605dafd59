//! Default values that serde needs as functions, and the limits that many keys share.

/// Most steps, tokens and the like: far beyond any run, and small enough that products of two fit into 64 bits.
pub(crate) const MAX_COUNT: u32 = 2_147_483_647;

/// Most problems or traces, which are all in memory.
pub(crate) const MAX_ITEMS: u32 = 10_000_000;

/// Smallest sampling temperature above 0: smaller numbers have no f32 of full precision.
pub const MIN_TEMPERATURE: f64 = 1.2e-38;

/// Tells whether a key has its type's default, and need not be written out.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Tells whether a key is 1, and need not be written out.
pub(crate) fn is_one<T: From<u8> + PartialEq>(value: &T) -> bool {
    *value == T::from(1)
}

/// A count.
pub(crate) const fn count<const N: usize>() -> usize {
    N
}

/// `true`.
pub(crate) const fn yes() -> bool {
    true
}

pub(crate) const fn seed() -> u64 {
    1
}
pub(crate) const fn rope_theta() -> f64 {
    10_000.0
}
pub(crate) const fn hit_rate() -> f64 {
    0.3
}
pub(crate) const fn one() -> f64 {
    1.0
}
pub(crate) const fn two() -> f64 {
    2.0
}
pub(crate) const fn zero() -> f64 {
    0.0
}
pub(crate) const fn half() -> f64 {
    0.5
}
pub(crate) const fn quarter() -> f64 {
    0.25
}
pub(crate) const fn tenth() -> f64 {
    0.1
}
pub(crate) const fn min_lr_ratio() -> f64 {
    0.1
}
pub(crate) const fn beta1() -> f64 {
    0.9
}
pub(crate) const fn beta2() -> f64 {
    0.95
}
pub(crate) const fn adam_eps() -> f64 {
    1e-8
}
pub(crate) const fn clip_eps() -> f64 {
    0.2
}
pub(crate) const fn advantage_eps() -> f64 {
    1e-4
}
pub(crate) const fn lambda() -> f64 {
    0.2
}
pub(crate) const fn tau() -> f64 {
    0.9
}
pub(crate) const fn format_error() -> f64 {
    -0.2
}
pub(crate) const fn confidence() -> f64 {
    0.95
}
