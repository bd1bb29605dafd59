//! Any bytes as a file of countdown problems are read, or refused with a line that the file has.

#![no_main]

use asyncthink_tasks::Error;
use asyncthink_tasks::mcd::{Rules, load_rows};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let num_lines = data.split(|&byte| byte == b'\n').count();
    match load_rows(data) {
        Ok(rows) => {
            assert!(rows.len() <= num_lines);
            for row in rows.iter().take(4) {
                let _ = row.verify(Rules::default());
            }
        }
        Err(
            Error::ReadLine { line, .. }
            | Error::ParseRow { line, .. }
            | Error::InvalidRow { line, .. },
        ) => {
            assert!((1..=num_lines).contains(&line));
        }
        Err(error) => panic!("{error}"),
    }
});
