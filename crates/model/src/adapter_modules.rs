//! Choice of the projections that have an adapter: `target_modules` of `adapter_config.json` and the keys that narrow it down, read as
//! PEFT reads them.

use std::collections::BTreeSet;

use regex::Regex;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::fields::Fields;
use crate::lora_config::{LoraTarget, Place};

/// Modules that PEFT could put adapters on besides the projections of the layers; there are none on them here.
const OTHER_MODULES: [&str; 2] = ["lm_head", "model.embed_tokens"];

const TARGETS: &str = "target_modules";
const EXCLUDED: &str = "exclude_modules";
const LAYERS: &str = "layers_to_transform";
const LAYERS_PATTERN: &str = "layers_pattern";

/// The rule by which PEFT chooses modules.
#[derive(Debug)]
pub(crate) struct ModuleRule {
    targets: Names,
    excluded: Option<Names>,
    layers: Option<LayerRule>,
}

/// Names of modules.
#[derive(Debug)]
enum Names {
    /// Every linear module but the head.
    AllLinear,
    /// A module's whole path, or its end after a dot.
    Listed(Vec<String>),
    /// The whole path matches.
    Pattern(Regex),
}

/// Layers of which only some have adapters. It does not apply to modules whose whole path is listed.
#[derive(Debug)]
struct LayerRule {
    indices: BTreeSet<usize>,
    /// Expressions that find a layer's index in a path, tried in turn.
    patterns: Vec<Regex>,
}

impl ModuleRule {
    pub(crate) fn read(top: &Fields<'_>, raw: &Map<String, Value>) -> Result<Self> {
        let targets = match raw.get(TARGETS) {
            Some(Value::String(text)) if text.eq_ignore_ascii_case("all-linear") => {
                Names::AllLinear
            }
            value => Names::read(value, TARGETS)?.ok_or_else(|| {
                top.unsupported(
                    TARGETS,
                    "names of modules, a regular expression, `all-linear`",
                )
            })?,
        };
        let layers = LayerRule::read(top, raw)?;
        if layers.is_some() && !matches!(targets, Names::Listed(_)) {
            return Err(top.unsupported(
                LAYERS,
                "none where `target_modules` is a string, as in PEFT",
            ));
        }
        Ok(Self {
            targets,
            excluded: Names::read(raw.get(EXCLUDED), EXCLUDED)?,
            layers,
        })
    }

    /// The projections that have an adapter in a model of so many layers.
    pub(crate) fn places(&self, num_layers: usize) -> Result<BTreeSet<Place>> {
        for module in OTHER_MODULES {
            if self.chooses(module)? {
                return Err(Error::Config(format!(
                    "`{TARGETS}` chooses `{module}`, which can have no adapter here; projections of the layers can"
                )));
            }
        }
        let mut places = BTreeSet::new();
        for layer in 0..num_layers {
            for target in LoraTarget::ALL {
                let place = Place { layer, target };
                if self.chooses(&place.module())? {
                    places.insert(place);
                }
            }
        }
        if places.is_empty() {
            return Err(Error::Config(format!(
                "`{TARGETS}` chooses no module of the base model, whose modules are called `model.layers.0.self_attn.q_proj` \
                 and the like"
            )));
        }
        Ok(places)
    }

    fn chooses(&self, module: &str) -> Result<bool> {
        if self
            .excluded
            .as_ref()
            .is_some_and(|names| names.contain(module))
        {
            return Ok(false);
        }
        if !self.targets.contain(module) {
            return Ok(false);
        }
        match (&self.layers, &self.targets) {
            (Some(layers), Names::Listed(names)) if !names.iter().any(|name| name == module) => {
                layers.contain(module)
            }
            _ => Ok(true),
        }
    }
}

impl Names {
    /// `None` where the key is absent or names nothing.
    fn read(value: Option<&Value>, key: &str) -> Result<Option<Self>> {
        let refuse = |value: &Value| {
            Error::Config(format!(
                "`{key}` must be a list of names or a regular expression: {value}"
            ))
        };
        match value {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) if text.is_empty() => Ok(None),
            Some(Value::String(text)) => {
                let anchored = format!(r"\A(?:{text})\z");
                Ok(Some(Self::Pattern(expression(&anchored, text, key)?)))
            }
            Some(Value::Array(names)) => {
                let names = names.iter().map(|name| {
                    let name = name.as_str().ok_or_else(|| refuse(name))?;
                    Ok(name.to_owned())
                });
                let names: Vec<String> = names.collect::<Result<_>>()?;
                Ok((!names.is_empty()).then_some(Self::Listed(names)))
            }
            Some(value) => Err(refuse(value)),
        }
    }

    fn contain(&self, module: &str) -> bool {
        match self {
            Self::AllLinear => !OTHER_MODULES.contains(&module),
            Self::Listed(names) => names.iter().any(|name| {
                let before = module.strip_suffix(name.as_str());
                before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
            }),
            Self::Pattern(pattern) => pattern.is_match(module),
        }
    }
}

impl LayerRule {
    fn read(top: &Fields<'_>, raw: &Map<String, Value>) -> Result<Option<Self>> {
        const SUPPORTED: &str = "the index of a layer, or a list of them";
        let index = |value: &Value| {
            let index = value.as_u64().and_then(|index| usize::try_from(index).ok());
            index.ok_or_else(|| top.unsupported(LAYERS, SUPPORTED))
        };
        let indices: BTreeSet<usize> = match raw.get(LAYERS) {
            None | Some(Value::Null) => BTreeSet::new(),
            Some(Value::Array(values)) => values.iter().map(index).collect::<Result<_>>()?,
            Some(value) => BTreeSet::from([index(value)?]),
        };
        let patterns = match raw.get(LAYERS_PATTERN) {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::String(text)) if text.is_empty() => Vec::new(),
            Some(Value::String(text)) => vec![text.as_str()],
            Some(Value::Array(texts)) => texts
                .iter()
                .map(|text| text.as_str())
                .collect::<Option<_>>()
                .ok_or_else(|| top.unsupported(LAYERS_PATTERN, "a name, or a list of names"))?,
            Some(_) => return Err(top.unsupported(LAYERS_PATTERN, "a name, or a list of names")),
        };
        if indices.is_empty() {
            // As PEFT has it: the pattern says which layers are counted.
            if patterns.is_empty() {
                return Ok(None);
            }
            return Err(top.unsupported(LAYERS_PATTERN, "none without `layers_to_transform`"));
        }
        let any = [r"[^.]*"];
        let patterns = if patterns.is_empty() {
            &any
        } else {
            patterns.as_slice()
        };
        let patterns = patterns
            .iter()
            .map(|text| expression(&format!(r"\A(?:.*\.{text}\.(\d+)\.)"), text, LAYERS_PATTERN))
            .collect::<Result<_>>()?;
        Ok(Some(Self { indices, patterns }))
    }

    fn contain(&self, module: &str) -> Result<bool> {
        let Some(found) = self.patterns.iter().find_map(|it| it.captures(module)) else {
            return Ok(false);
        };
        let index = found.get(1).and_then(|index| index.as_str().parse().ok());
        let index: usize = index.ok_or_else(|| {
            Error::Config(format!(
                "`{LAYERS_PATTERN}` finds no index of a layer in `{module}`"
            ))
        })?;
        Ok(self.indices.contains(&index))
    }
}

/// Compiles an expression of PEFT, which are Python's. The crate takes time in proportion to the text, and therefore knows no
/// looking around and no references back.
fn expression(anchored: &str, text: &str, key: &str) -> Result<Regex> {
    Regex::new(anchored).map_err(|error| {
        let reason = match error {
            regex::Error::CompiledTooBig(_) => "it is too large".to_owned(),
            // The message shows the expression with a mark below it, and the reason in the last line.
            error => {
                let message = error.to_string();
                let last = message.lines().last().unwrap_or_default();
                last.trim_start_matches("error: ").to_owned()
            }
        };
        Error::Config(format!(
            "`{key}` is no regular expression that is supported: `{text}` ({reason})"
        ))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rule(content: &Value) -> Result<ModuleRule> {
        let raw = content.as_object().unwrap();
        ModuleRule::read(&Fields::top(raw), raw)
    }

    /// Layers and names of what is chosen in a model of three layers, such as `0.q_proj`.
    fn chosen(content: &Value) -> Result<Vec<String>> {
        let places = rule(content)?.places(3)?;
        let name = |place: &Place| format!("{}.{}", place.layer, place.target.name());
        Ok(places.iter().map(name).collect())
    }

    #[test]
    fn modules_are_chosen_as_peft_chooses_them() {
        let all: Vec<String> = chosen(&json!({"target_modules": "all-linear"})).unwrap();
        assert_eq!(all.len(), 21);
        let q = ["0.q_proj", "1.q_proj", "2.q_proj"];
        for (content, expected) in [
            (json!({"target_modules": ["q_proj", "c_attn"]}), &q[..]),
            (json!({"target_modules": ["self_attn.q_proj"]}), &q),
            (json!({"target_modules": r".*\.q_proj"}), &q),
            (
                json!({"target_modules": r"model\.layers\.\d+\.self_attn\.(q|x)_proj"}),
                &q,
            ),
            (
                json!({"target_modules": ["1.self_attn.q_proj", "model.layers.2.self_attn.q_proj"]}),
                &q[1..],
            ),
            (
                json!({"target_modules": r".*\.[12]\.self_attn\.q_proj"}),
                &q[1..],
            ),
            (
                json!({"target_modules": ["q_proj"], "layers_to_transform": [1, 2]}),
                &q[1..],
            ),
            (
                json!({"target_modules": ["q_proj"], "layers_to_transform": 0}),
                &q[..1],
            ),
            (
                json!({"target_modules": ["q_proj"], "layers_to_transform": [2], "layers_pattern": "layers"}),
                &q[2..],
            ),
            (
                json!({"target_modules": ["q_proj"], "layers_to_transform": [2], "layers_pattern": ["h", "layers"]}),
                &q[2..],
            ),
            // A whole path is chosen whatever the layers are.
            (
                json!({"target_modules": ["q_proj", "model.layers.0.self_attn.q_proj"], "layers_to_transform": [2]}),
                &["0.q_proj", "2.q_proj"],
            ),
            (
                json!({"target_modules": ["q_proj", "k_proj"], "exclude_modules": ["k_proj"]}),
                &q,
            ),
            (
                json!({"target_modules": ["q_proj", "k_proj"], "exclude_modules": r".*k_proj|.*\.0\..*"}),
                &q[1..],
            ),
            (
                json!({"target_modules": ["q_proj", "lm_head"], "exclude_modules": ["lm_head"]}),
                &q,
            ),
            (
                json!({"target_modules": ["q_proj"], "exclude_modules": [], "layers_to_transform": []}),
                &q,
            ),
        ] {
            assert_eq!(chosen(&content).unwrap(), expected, "{content}");
        }
    }

    #[test]
    fn what_is_not_supported_is_refused_with_a_reason() {
        for (content, reason) in [
            (json!({"target_modules": r"(?!x)q_proj"}), "look-around"),
            (json!({"target_modules": r"(q)\1"}), "backreferences"),
            (json!({"target_modules": "("}), "unclosed group"),
            (json!({"target_modules": "x{1000}{1000}"}), "too large"),
            (json!({"target_modules": ["lm_head"]}), "chooses `lm_head`"),
            (
                json!({"target_modules": r".*\.embed_tokens"}),
                "chooses `model.embed_tokens`",
            ),
            (json!({"target_modules": "q_proj"}), "chooses no module"),
            (json!({"target_modules": ["c_attn"]}), "chooses no module"),
            (json!({"target_modules": []}), "`target_modules`"),
            (json!({}), "`target_modules`"),
            (json!({"target_modules": [1]}), "`target_modules`"),
            (
                json!({"target_modules": ".*q_proj", "layers_to_transform": [1]}),
                "`layers_to_transform`",
            ),
            (
                json!({"target_modules": ["q_proj"], "layers_to_transform": ["a"]}),
                "`layers_to_transform`",
            ),
            (
                json!({"target_modules": ["q_proj"], "layers_pattern": "layers"}),
                "`layers_pattern`",
            ),
            (
                json!({"target_modules": ["q_proj"], "exclude_modules": {"a": 1}}),
                "`exclude_modules`",
            ),
        ] {
            let error = chosen(&content).unwrap_err().to_string();
            assert!(error.contains(reason), "{content}: {error}");
        }
    }
}
