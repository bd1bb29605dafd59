//! Rotary positions in the forms that Hugging Face configurations know.

use serde_json::{Map, Value};
use tch::{Device, Kind, TchError, Tensor};

use crate::error::{Error, Result};
use crate::fields::Fields;

/// What a configuration that names no base means, in every family that is supported.
const DEFAULT_THETA: f64 = 10_000.0;

/// `rope_type`s that are implemented, for messages.
const SUPPORTED: &str = "`default`, `linear`, `llama3` or `yarn`";

/// A key that files of the time before `transformers` knew `YaRN` have, and that it never read.
const MISNAMED_FACTOR: &str = "attn_factor";

/// Rotary positions: a base, and how its frequencies are stretched for long sequences.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// How the frequencies are stretched.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are stretched; the numbers are those of the configuration, with its defaults filled in.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All frequencies are divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3: long waves are divided by `factor`, short ones are kept, those between are blended.
    Llama3 {
        /// The divisor of long waves.
        factor: f64,
        /// Waves longer than `original_positions / low_freq_factor` are long.
        low_freq_factor: f64,
        /// Waves shorter than `original_positions / high_freq_factor` are short.
        high_freq_factor: f64,
        /// Positions that the model was first trained on.
        original_positions: f64,
    },
    /// `YaRN` (arXiv:2309.00071): a ramp from kept to divided frequencies, and larger queries and keys.
    Yarn {
        /// The divisor at the end of the ramp.
        factor: f64,
        /// Rotations within the original positions above which a frequency is kept.
        beta_fast: f64,
        /// Rotations within the original positions below which a frequency is divided.
        beta_slow: f64,
        /// Positions that the model was first trained on.
        original_positions: f64,
        /// What cosines and sines are multiplied by.
        attention_factor: f64,
        /// Whether the ends of the ramp are whole dimensions.
        truncate: bool,
    },
}

impl Rope {
    /// Plain rotary positions.
    pub fn plain(theta: f64) -> Self {
        Self {
            theta,
            scaling: RopeScaling::None,
        }
    }

    /// Reads both spellings: `rope_theta` beside `rope_scaling`, and `rope_parameters` that hold everything.
    pub(crate) fn read(
        config: &Map<String, Value>,
        max_positions: i64,
        warnings: &mut Vec<String>,
    ) -> Result<Self> {
        let old = Fields::object(config, "rope_scaling")?;
        let new = Fields::object(config, "rope_parameters")?;
        if let (Some(_), Some(new)) = (&old, &new)
            && config["rope_scaling"] != config["rope_parameters"]
        {
            return Err(Error::Config(format!(
                "`rope_scaling` and `{}` are both given and differ",
                new.name()
            )));
        }
        let top = Fields::top(config);
        let theta = match &new {
            Some(fields) => fields.number("rope_theta")?,
            None => None,
        };
        let theta = match theta {
            Some(theta) => theta,
            None => top.number("rope_theta")?.unwrap_or(DEFAULT_THETA),
        };
        if theta <= 1.0 {
            return Err(Error::Config(format!(
                "`rope_theta` must be above 1: {theta}"
            )));
        }
        for fields in std::iter::once(&top).chain(&new).chain(&old) {
            if let Some(share) = fields.number("partial_rotary_factor")?
                && (share - 1.0).abs() > f64::EPSILON
            {
                return Err(fields.unsupported(
                    "partial_rotary_factor",
                    "1: every dimension of a head is rotated",
                ));
            }
        }
        let scaling = match new.or(old) {
            Some(fields) => RopeScaling::read(&fields, max_positions, warnings)?,
            None => RopeScaling::None,
        };
        Ok(Self { theta, scaling })
    }

    /// Radians per position of each pair of dimensions, f32 `[head_dim / 2]` on the CPU, computed in the order of
    /// operations and the precision of `transformers`, because the rounding grows with the position.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    pub(crate) fn frequencies(&self, head_dim: i64) -> Result<Tensor, TchError> {
        let options = (Kind::Float, Device::Cpu);
        let half = head_dim / 2;
        let exponents = Tensor::f_arange_start_step(0, head_dim, 2, options)? / head_dim as f64;
        let waves = Tensor::from(self.theta)
            .f_to_kind(Kind::Float)?
            .f_pow(&exponents)?;
        let plain = waves.f_reciprocal()?;
        match self.scaling {
            RopeScaling::None => Ok(plain),
            RopeScaling::Linear { factor } => Ok(plain / factor),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_positions,
            } => {
                let lengths = plain.f_reciprocal()? * (2.0 * std::f64::consts::PI);
                let is_long = lengths.f_gt(original_positions / low_freq_factor)?;
                let is_short = lengths.f_lt(original_positions / high_freq_factor)?;
                let divided = &plain / factor;
                let smooth = (lengths.f_reciprocal()? * original_positions - low_freq_factor)
                    / (high_freq_factor - low_freq_factor);
                let blended: Tensor = (&smooth * -1.0 + 1.0) * &divided + &smooth * &plain;
                let kept = blended.f_where_self(&is_short.f_logical_not()?, &plain)?;
                divided.f_where_self(&is_long, &kept)
            }
            RopeScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                original_positions,
                truncate,
                attention_factor: _,
            } => {
                let dimension_of = |rotations: f64| {
                    let turns = original_positions / (rotations * 2.0 * std::f64::consts::PI);
                    head_dim as f64 * turns.ln() / (2.0 * self.theta.ln())
                };
                let (mut low, mut high) = (dimension_of(beta_fast), dimension_of(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                let (low, mut high) = (low.max(0.0), high.min(head_dim as f64 - 1.0));
                if (high - low).abs() < f64::EPSILON {
                    high += 0.001;
                }
                let ramp =
                    ((Tensor::f_arange(half, options)? - low) / (high - low)).f_clamp(0, 1)?;
                let divided = (waves * factor).f_reciprocal()?;
                Ok(divided * &ramp + plain * (&ramp * -1.0 + 1.0))
            }
        }
    }

    /// What cosines and sines are multiplied by, if by anything.
    pub(crate) fn attention_factor(&self) -> Option<f64> {
        match self.scaling {
            RopeScaling::Yarn {
                attention_factor, ..
            } => Some(attention_factor),
            _ => None,
        }
    }
}

impl RopeScaling {
    fn read(fields: &Fields<'_>, max_positions: i64, warnings: &mut Vec<String>) -> Result<Self> {
        let (kind_key, kind) = match fields.text("rope_type")? {
            Some(kind) => ("rope_type", Some(kind)),
            None => ("type", fields.text("type")?),
        };
        let known: &[&str] = match kind {
            None | Some("default") => &[],
            Some("linear") => &["factor"],
            Some("llama3") => &[
                "factor",
                "low_freq_factor",
                "high_freq_factor",
                "original_max_position_embeddings",
            ],
            Some("yarn") => &[
                "factor",
                "beta_fast",
                "beta_slow",
                "original_max_position_embeddings",
                "attention_factor",
                "mscale",
                "mscale_all_dim",
                "truncate",
            ],
            Some(_) => return Err(fields.unsupported(kind_key, SUPPORTED)),
        };
        // A parameter that is not understood would change every position.
        let common = ["rope_type", "type", "rope_theta", "partial_rotary_factor"];
        let ignored: &[&str] = match kind {
            Some("yarn") => &[MISNAMED_FACTOR],
            _ => &[],
        };
        if fields.has(MISNAMED_FACTOR) && !ignored.is_empty() {
            warnings.push(format!(
                "`{}.{MISNAMED_FACTOR}` is ignored, as in `transformers`, which reads `attention_factor`",
                fields.name()
            ));
        }
        if let Some(key) = fields.unknown(&[known, &common, ignored].concat()) {
            return Err(fields.unsupported(key, "no such key for this `rope_type`"));
        }
        let original_positions = || {
            fields
                .positive("original_max_position_embeddings")
                .map(|value| value.unwrap_or(max_positions as f64))
        };
        match kind {
            Some("linear") => Ok(Self::Linear {
                factor: fields.required("factor")?,
            }),
            Some("llama3") => {
                let (low, high) = (
                    fields.required("low_freq_factor")?,
                    fields.required("high_freq_factor")?,
                );
                if low >= high {
                    return Err(Error::Config(format!(
                        "`low_freq_factor` ({low}) must be below `high_freq_factor` ({high})"
                    )));
                }
                Ok(Self::Llama3 {
                    factor: fields.required("factor")?,
                    low_freq_factor: low,
                    high_freq_factor: high,
                    original_positions: original_positions()?,
                })
            }
            Some("yarn") => Self::read_yarn(fields, original_positions()?, max_positions),
            _ => Ok(Self::None),
        }
    }

    fn read_yarn(fields: &Fields<'_>, original_positions: f64, max_positions: i64) -> Result<Self> {
        let factor = match fields.positive("factor")? {
            Some(factor) => factor,
            None => max_positions as f64 / original_positions,
        };
        let grown = |scale: f64| {
            if factor <= 1.0 {
                1.0
            } else {
                0.1 * scale * factor.ln() + 1.0
            }
        };
        let attention_factor = match (
            fields.positive("attention_factor")?,
            fields.number("mscale")?,
            fields.number("mscale_all_dim")?,
        ) {
            (Some(given), _, _) => given,
            (None, Some(scale), Some(all)) if scale != 0.0 && all != 0.0 => {
                grown(scale) / grown(all)
            }
            _ => grown(1.0),
        };
        Ok(Self::Yarn {
            factor,
            beta_fast: fields.positive("beta_fast")?.unwrap_or(32.0),
            beta_slow: fields.positive("beta_slow")?.unwrap_or(1.0),
            original_positions,
            attention_factor,
            truncate: fields.flag("truncate")?.unwrap_or(true),
        })
    }
}
