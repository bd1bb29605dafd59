//! Which errors of which crate are the user's to fix, and how.

use std::borrow::Cow;

use asyncthink_distributed::SharedFailure;
use asyncthink_engine::Error as EngineError;

use crate::failure::Failure;

impl From<asyncthink_data::Error> for Failure {
    fn from(error: asyncthink_data::Error) -> Self {
        Self::of(&error, error.is_input(), data_hint(&error))
    }
}

fn data_hint(error: &asyncthink_data::Error) -> Option<String> {
    use asyncthink_data::Error as E;
    let hint = match error {
        E::CorruptParquet { .. }
        | E::ParquetKind { .. }
        | E::ParquetColumn { .. }
        | E::ParquetRow { .. } => {
            "make the file again with `asyncthink-train synth RECIPE --resume never`"
        }
        E::File(error) => return error.hint().map(str::to_owned),
        E::Tokenizer { .. } => {
            "give a folder that holds the `tokenizer.json` of a Hugging Face model"
        }
        E::NoChatTemplate { .. } => {
            "fetch the model's `chat_template.jinja` or `tokenizer_config.json` too, or remove `[prompts.chat]`"
        }
        E::ChatTemplate { .. } | E::ChatRender { .. } => {
            "docs/models.md says what a chat template may use; without `[prompts.chat]` the prompts are plain text"
        }
        E::MissingPlaceholder { .. } => "put the placeholder into the template in `[prompts]`",
        _ => return None,
    };
    Some(hint.to_owned())
}

/// Whether a model at fault came from the user.
fn model_is_input(error: &asyncthink_model::Error) -> bool {
    use asyncthink_model::Error as E;
    match error {
        E::Io(error) => error.kind() == std::io::ErrorKind::NotFound,
        E::File(error) => error.is_input(),
        E::InFile { source, .. } => model_is_input(source),
        E::Torch(_) | E::Panicked { .. } => false,
        E::Shim(error) => device_is_input(error),
        E::Data(error) => error.is_input(),
        _ => true,
    }
}

fn model_hint(error: &asyncthink_model::Error) -> Option<String> {
    use asyncthink_model::Error as E;
    match error {
        E::Data(error) => data_hint(error),
        error => error.hint().map(str::to_owned),
    }
}

/// A device that this machine does not have is wrong in the recipe.
fn device_is_input(error: &asyncthink_torch::Error) -> bool {
    use asyncthink_torch::Error as E;
    matches!(
        error,
        E::UnknownDevice { .. }
            | E::NoCudaLibrary { .. }
            | E::CudaLibrary { .. }
            | E::NoGpu { .. }
            | E::NoSuchGpu { .. }
    )
}

impl From<asyncthink_torch::Error> for Failure {
    fn from(error: asyncthink_torch::Error) -> Self {
        Self::of(
            &error,
            device_is_input(&error),
            error.hint().map(str::to_owned),
        )
    }
}

impl From<asyncthink_distributed::Error> for Failure {
    fn from(error: asyncthink_distributed::Error) -> Self {
        use asyncthink_distributed::Error as E;
        let (is_input, hint) = match &error {
            E::Model(error) => (model_is_input(error), model_hint(error)),
            E::Kernel(error) => (device_is_input(error), error.hint().map(str::to_owned)),
            E::Io(error) => (error.kind() == std::io::ErrorKind::NotFound, None),
            _ => (error.is_input(), error.hint().map(str::to_owned)),
        };
        Self::of(&error, is_input, hint)
    }
}

impl From<asyncthink_gradient::Error> for Failure {
    fn from(error: asyncthink_gradient::Error) -> Self {
        use asyncthink_gradient::Error as E;
        match error {
            E::Distributed(error) => error.into(),
            E::Model(error) => error.into(),
            E::Kernel(error) => error.into(),
            error => Self::of(&error, false, None),
        }
    }
}

impl From<asyncthink_checkpoint::Error> for Failure {
    fn from(error: asyncthink_checkpoint::Error) -> Self {
        use asyncthink_checkpoint::Error as E;
        let (is_input, hint) = match &error {
            E::Data(error) => (error.is_input(), data_hint(error)),
            E::Model(error) => (model_is_input(error), model_hint(error)),
            E::Io(error) => (error.kind() == std::io::ErrorKind::NotFound, None),
            _ => (error.is_input(), error.hint().map(Cow::into_owned)),
        };
        Self::of(&error, is_input, hint)
    }
}

impl From<asyncthink_trainer::Error> for Failure {
    fn from(error: asyncthink_trainer::Error) -> Self {
        use asyncthink_trainer::Error as E;
        let (is_input, hint) = match error {
            E::Distributed(error) => return error.into(),
            E::Gradient(error) => return error.into(),
            E::Checkpoint(error) => return error.into(),
            E::Data(ref error) => (error.is_input(), data_hint(error)),
            E::Model(ref error) => (model_is_input(error), model_hint(error)),
            E::Kernel(ref error) => (device_is_input(error), error.hint().map(str::to_owned)),
            E::Rollout(ref error) => (rollout_is_input(error), rollout_hint(error)),
            E::Io(ref error) => (error.kind() == std::io::ErrorKind::NotFound, None),
            ref error => (error.is_input(), None),
        };
        let hint = hint.or_else(|| error.hint().map(Cow::into_owned));
        Self::of(&error, is_input, hint)
    }
}

fn rollout_is_input(error: &asyncthink_rollout::Error) -> bool {
    use asyncthink_rollout::Error as E;
    match error {
        E::Data(error) => error.is_input(),
        E::Model(error) => model_is_input(error),
        E::Io(error) => error.kind() == std::io::ErrorKind::NotFound,
        E::PromptTooLong { .. }
        | E::CacheMemory(_)
        | E::EpisodeCache { .. }
        | E::TooFewSlots { .. }
        | E::Engine(EngineError::CacheBudget { .. } | EngineError::Dtype { .. }) => true,
        _ => false,
    }
}

fn rollout_hint(error: &asyncthink_rollout::Error) -> Option<String> {
    use asyncthink_rollout::Error as E;
    match error {
        E::Data(error) => data_hint(error),
        E::Model(error) => model_hint(error),
        E::Engine(EngineError::CacheBudget { .. }) | E::EpisodeCache { .. } => {
            Some("raise `engine.cache_memory`, or shorten the budgets in `[protocol]`".to_owned())
        }
        E::Engine(EngineError::Dtype { .. }) => {
            Some("leave `engine.dtype` out, or set it to `auto`".to_owned())
        }
        E::TooFewSlots { .. } => {
            Some("raise `engine.max_agents` and `engine.max_batch_tokens`".to_owned())
        }
        _ => None,
    }
}

impl From<asyncthink_model::Error> for Failure {
    fn from(error: asyncthink_model::Error) -> Self {
        asyncthink_trainer::Error::from(error).into()
    }
}

impl From<asyncthink_rollout::Error> for Failure {
    fn from(error: asyncthink_rollout::Error) -> Self {
        asyncthink_trainer::Error::from(error).into()
    }
}

impl From<asyncthink_launch::Error> for Failure {
    fn from(error: asyncthink_launch::Error) -> Self {
        Self::of(&error, error.is_input(), error.hint().map(str::to_owned))
    }
}

impl SharedFailure for Failure {
    fn is_input(&self) -> bool {
        self.exit_code() == Failure::input("").exit_code()
    }
}

impl From<asyncthink_coldstart::Error> for Failure {
    fn from(error: asyncthink_coldstart::Error) -> Self {
        use asyncthink_coldstart::Error as E;
        let hint = match &error {
            E::Data(error) => data_hint(error),
            E::Tasks(error) => error.hint(),
            E::RanksDiffer => Some(
                "start all ranks with the same recipe, and with the same files at its paths"
                    .to_owned(),
            ),
            _ => None,
        };
        Self::of(&error, error.is_input(), hint)
    }
}

impl From<asyncthink_eval::Error> for Failure {
    fn from(error: asyncthink_eval::Error) -> Self {
        use asyncthink_eval::Error as E;
        match error {
            E::Ranks(error) => error.into(),
            E::Model(error) => error.into(),
            E::Rollout(error) => error.into(),
            error => Self::of(&error, error.is_input(), None),
        }
    }
}
