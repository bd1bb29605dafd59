//! The model to play with: its folder, and how it is prompted.

use std::path::{Path, PathBuf};

use asyncthink_checkpoint::{RunLayout, newest_model};
use asyncthink_data::{ChatSettings, Tokenizer};
use asyncthink_model::ModelFolder;
use asyncthink_recipe::Stage;
use asyncthink_rollout::{MODEL_CARD_FILE, ModelCard};

use crate::failure::Failure;
use crate::preflight;

/// How a model is prompted that brings no card of its own.
const UNTRAINED: &str = include_str!("untrained.json");

/// Files of which a model folder has one.
const CONFIG_FILES: [&str; 2] = ["config.json", "adapter_config.json"];

/// A model but for its weights.
pub(crate) struct ThinkModel {
    /// The folder, links followed.
    pub(crate) dir: PathBuf,
    /// The base model's folder, where it was given.
    base: Option<PathBuf>,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) card: ModelCard,
    /// Whether the folder holds the card; if not, it is the one for models
    /// that were not trained.
    pub(crate) has_card: bool,
    /// Why the prompts are plain text although the model has a chat template.
    pub(crate) chat_refusal: Option<String>,
}

impl ThinkModel {
    /// Reads the model of a folder: its own, or the newest of the run that it
    /// belongs to.
    pub(crate) fn read(given: &Path, base: Option<&Path>) -> Result<Self, Failure> {
        let dir = model_dir(given)?;
        preflight::check_base(&dir, base)?;
        let tokenizer = Tokenizer::from_dir(&dir).map_err(|error| {
            Failure::from(error)
                .hint("a model folder holds the `tokenizer.json` of a Hugging Face model")
        })?;
        let has_card = dir.join(MODEL_CARD_FILE).exists();
        let (card, chat_refusal) = if has_card {
            let card = ModelCard::read(&dir)
                .map_err(|error| Failure::of(&error, true, Some(card_hint())))?;
            check_trained_chat(&card, &tokenizer)?;
            (card, None)
        } else {
            untrained_card(&tokenizer)?
        };
        Ok(Self {
            dir,
            base: base.map(Path::to_owned),
            tokenizer,
            card,
            has_card,
            chat_refusal,
        })
    }
}

impl ThinkModel {
    /// The folder to load, with the base model that was given for it.
    pub(crate) fn folder(&self) -> ModelFolder<'_> {
        ModelFolder::new(&self.dir).with_base(self.base.as_deref())
    }
}

fn card_hint() -> String {
    format!(
        "`{MODEL_CARD_FILE}` comes with every checkpoint of `sft` and `grpo`: copy it from one again, or remove it to use \
         the built-in prompts"
    )
}

/// A model that was trained inside its chat template is prompted in no other way.
fn check_trained_chat(card: &ModelCard, tokenizer: &Tokenizer) -> Result<(), Failure> {
    let templates = card.templates()?;
    if templates.chat().is_none() {
        return Ok(());
    }
    let checked = tokenizer
        .chat_template()
        .and_then(|template| templates.check_chat(template));
    checked.map_err(|error| {
        Failure::from(error).hint(format!(
            "the model was trained with its chat template, as `{MODEL_CARD_FILE}` says: copy the template from the \
             checkpoint again"
        ))
    })
}

/// The card of a model that brings none. Where the model has a chat template
/// that takes the prompts, they are put into it; where it has one that does
/// not, the reason comes with the card.
fn untrained_card(tokenizer: &Tokenizer) -> Result<(ModelCard, Option<String>), Failure> {
    let mut card: ModelCard = serde_json::from_str(UNTRAINED).map_err(|error| {
        Failure::run(format!("the built-in model card cannot be read: {error}"))
    })?;
    let template = match tokenizer.chat_template() {
        Ok(template) => template,
        Err(asyncthink_data::Error::NoChatTemplate { .. }) => return Ok((card, None)),
        Err(error) => return Ok((card, Some(error.to_string()))),
    };
    // Thoughts before the answer would use up the budget, and may quote tags.
    let can_think = template.source().contains("enable_thinking");
    let chat = ChatSettings {
        system: None,
        enable_thinking: can_think.then_some(false),
    };
    let templates = card.templates()?.with_chat(Some(chat.clone()));
    let refusal = templates.check_chat(template).err();
    if refusal.is_none() {
        card.chat = Some(chat);
    }
    Ok((card, refusal.map(|error| error.to_string())))
}

fn model_dir(given: &Path) -> Result<PathBuf, Failure> {
    let hint = "give the folder of a Hugging Face model, such as a checkpoint, or of a run, such as `runs/quickstart`";
    if !given.is_dir() {
        return Err(
            Failure::input(format!("`--model {}`: no such folder", given.display())).hint(hint),
        );
    }
    let run = RunLayout::new(given);
    let candidates = [
        given.to_owned(),
        run.latest_model(Stage::Grpo),
        run.latest_model(Stage::Sft),
        // The folder of a stage, and that of its checkpoints.
        newest_model(&given.join("checkpoints")),
        newest_model(given),
    ];
    let found = candidates
        .iter()
        .find(|dir| CONFIG_FILES.iter().any(|name| dir.join(name).is_file()));
    match found {
        // `latest` may move while the model is read.
        Some(dir) => Ok(fs_err::canonicalize(dir)?),
        None => Err(Failure::input(format!(
            "`--model {}`: the folder holds no model and no run with a checkpoint",
            given.display()
        ))
        .hint(hint)),
    }
}

#[cfg(test)]
mod tests {
    use asyncthink_data::{TaskTokenizerConfig, task_tokenizer};

    use super::*;

    /// A tokenizer that knows little, and with it a chat template, if one is
    /// given.
    fn tokenizer(chat_template: Option<&str>) -> Tokenizer {
        let folder = tempfile::tempdir().expect("a folder");
        let dir = folder.path();
        let config = TaskTokenizerConfig::default();
        let tokenizer = task_tokenizer(["This is"], &config).expect("a tokenizer");
        tokenizer.save(dir).expect("files");
        if let Some(source) = chat_template {
            fs_err::write(dir.join("chat_template.jinja"), source).expect("a file");
        }
        Tokenizer::from_dir(dir).expect("a tokenizer")
    }

    #[test]
    fn the_built_in_card_prompts_as_it_should() {
        let (card, refusal) = untrained_card(&tokenizer(None)).expect("a card");
        assert_eq!(refusal, None);
        assert_eq!(card.chat, None);
        let templates = card.templates().expect("placeholders");
        let prompt = templates.organizer("2 + 2?");
        assert!(prompt.contains("Query: 2 + 2?\n"), "{prompt}");
        assert!(prompt.contains("At most 3 subtasks"), "{prompt}");
        assert!(templates.worker("2").contains("Subtask: 2\n"));
    }

    #[test]
    fn a_chat_template_is_used_where_it_takes_the_prompts() {
        let prompted = |source| {
            let (card, refusal) = untrained_card(&tokenizer(Some(source))).expect("a card");
            (card.chat, refusal)
        };
        let plain = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}";
        assert_eq!(prompted(plain), (Some(ChatSettings::default()), None));
        let thinking = plain.to_owned() + "{% if enable_thinking %}!{% endif %}";
        let (settings, refusal) = prompted(&thinking);
        assert_eq!(settings.expect("settings").enable_thinking, Some(false));
        assert_eq!(refusal, None);
        for (source, reason) in [
            ("says nothing", "does not show the user message"),
            ("{{ raise_exception('Not for you.') }}", "Not for you."),
            ("{% if %}", "syntax error"),
        ] {
            let (chat, refusal) = prompted(source);
            assert_eq!(chat, None);
            let refusal = refusal.expect("a reason");
            assert!(refusal.contains(reason), "{refusal}");
            assert!(refusal.contains("chat_template.jinja"), "{refusal}");
        }
    }

    #[test]
    fn a_model_trained_with_its_chat_template_is_refused_without() {
        let (mut card, _) = untrained_card(&tokenizer(None)).expect("a card");
        check_trained_chat(&card, &tokenizer(None)).expect("plain prompts");
        card.chat = Some(ChatSettings::default());
        for source in [None, Some("{% if %}"), Some("says nothing")] {
            assert!(check_trained_chat(&card, &tokenizer(source)).is_err());
        }
        let plain = "{% for m in messages %}{{ m.content }}{% endfor %}";
        check_trained_chat(&card, &tokenizer(Some(plain))).expect("a template");
    }

    #[test]
    fn a_model_is_found_in_each_folder_of_a_run() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().canonicalize().expect("a folder");
        for stage in ["sft", "grpo"] {
            let checkpoints = root.join(stage).join("checkpoints");
            let model = checkpoints.join("step_3");
            fs_err::create_dir_all(&model).expect("a folder");
            fs_err::write(model.join("config.json"), "{}").expect("a file");
            std::os::unix::fs::symlink("step_3", checkpoints.join("latest")).expect("a link");
            for given in [&root, &root.join(stage), &checkpoints, &model] {
                assert_eq!(model_dir(given).expect("a model"), model);
            }
        }
        let none = root.join("none");
        assert!(model_dir(&none).is_err());
        fs_err::create_dir(&none).expect("a folder");
        assert!(model_dir(&none).is_err());
    }
}
