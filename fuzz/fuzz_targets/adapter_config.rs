//! Any `adapter_config.json` is read or refused without a panic, what was read says the same written out, and an object with
//! another type of weights differs in that alone.
//!
//! Files of the model crate are compiled alone, because the crate needs libtorch.

#![no_main]

use std::fs;
use std::path::{Path, PathBuf};

use libfuzzer_sys::fuzz_target;
use serde_json::Value;

#[allow(dead_code)]
#[path = "../../crates/model/src/adapter_file.rs"]
mod adapter_file;
#[allow(dead_code)]
#[path = "../../crates/model/src/adapter_modules.rs"]
mod adapter_modules;
#[allow(dead_code)]
#[path = "../../crates/model/src/config_text.rs"]
mod config_text;
#[allow(dead_code)]
#[path = "../../crates/model/src/fields.rs"]
mod fields;
#[allow(dead_code)]
#[path = "../../crates/model/src/lora_config.rs"]
mod lora_config;
#[allow(dead_code)]
#[path = "../../crates/model/src/model_folder.rs"]
mod model_folder;

mod error {
    use std::borrow::Cow;
    use std::path::PathBuf;

    /// Stands for the crate's error, which the readers only make.
    #[derive(Debug)]
    #[allow(dead_code)]
    pub(crate) enum Error {
        Adapter {
            path: PathBuf,
            reason: String,
        },
        Config(String),
        File(asyncthink_files::Error),
        InFile {
            path: PathBuf,
            source: Box<Error>,
        },
        Io(std::io::Error),
        Json {
            path: PathBuf,
            source: serde_json::Error,
        },
        NoBase {
            path: PathBuf,
            base: String,
        },
        Unsupported {
            key: String,
            value: String,
            supported: Cow<'static, str>,
        },
    }

    pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

    impl From<std::io::Error> for Error {
        fn from(error: std::io::Error) -> Self {
            Self::Io(error)
        }
    }

    impl From<asyncthink_files::Error> for Error {
        fn from(error: asyncthink_files::Error) -> Self {
            Self::File(error)
        }
    }
}

const NUM_LAYERS: usize = 3;

fuzz_target!(|data: &[u8]| {
    let folder = PathBuf::from(format!("/dev/shm/adapter_config.{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    let file = folder.join("adapter_config.json");
    fs::write(&file, data).expect("a file");
    if let Ok(adapter) = adapter_file::AdapterFile::read(&folder)
        && let Ok(config) = adapter.config(NUM_LAYERS)
    {
        assert!(config.rank > 0 && config.places(NUM_LAYERS).next().is_some());
        adapter_file::write(&folder, &config, Path::new("base"), NUM_LAYERS).expect("a file");
        let again = adapter_file::AdapterFile::read(&folder).expect("what was written");
        assert_eq!(again.config(NUM_LAYERS).expect("its places"), config);
    }
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let Ok(mut object @ Value::Object(_)) = serde_json::from_str(text) else {
        return;
    };
    let changed = config_text::with_dtype(text, "float32").expect("an object");
    let keys = ["dtype", "torch_dtype"].map(|key| (key, object.get(key).is_some()));
    for (key, is_there) in keys {
        if is_there || key == "torch_dtype" && keys.iter().all(|(_, is_there)| !is_there) {
            object[key] = "float32".into();
        }
    }
    let changed: Value = serde_json::from_str(&changed).expect("JSON");
    assert_eq!(changed, object);
});
