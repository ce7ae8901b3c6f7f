//! The `.args` files of `vmm-config/qemu`: words, comments, and `@NAME@`s to be filled in.

use std::fs;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};

use crate::cargo;

/// Reads `vmm-config/qemu/NAME` and fills in `values`.
pub fn read(name: &str, values: &[(&str, &str)]) -> Result<Vec<String>> {
    let path = cargo::root().join("vmm-config/qemu").join(name);
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    fill_in(&text, values).with_context(|| format!("in {}", path.display()))
}

/// Splits first and fills in then: a value may hold blanks.
fn fill_in(text: &str, values: &[(&str, &str)]) -> Result<Vec<String>> {
    let mut words = Vec::new();
    for line in text
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
    {
        for word in line.split_whitespace() {
            let mut filled = word.to_owned();
            for (name, value) in values {
                filled = filled.replace(&format!("@{name}@"), value);
            }
            if let Some(name) = unfilled(&filled) {
                bail!("nothing is given for {name} in `{word}`");
            }
            words.push(filled);
        }
    }
    Ok(words)
}

/// The first `@NAME@` that is still there.
fn unfilled(word: &str) -> Option<&str> {
    let start = word.find('@')?;
    let length = word[start + 1..].find('@')?;
    let name = &word[start + 1..start + 1 + length];
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_uppercase());
    is_name.then(|| &word[start..start + length + 2])
}

/// QEMU splits option values at commas; a doubled one is itself.
pub fn escape(value: &str) -> String {
    value.replace(',', ",,")
}

/// Pairs of `-option value`.
pub fn options(words: &[String]) -> Result<Vec<(&str, &str)>> {
    words
        .chunks(2)
        .map(|pair| match pair {
            [option, value] if option.starts_with('-') => Ok((option.as_str(), value.as_str())),
            _ => bail!("`{}` is not an option with a value", pair.join(" ")),
        })
        .collect()
}

/// `DRIVER,name=value,...` as the monitor wants it: an object, with numbers as numbers.
pub fn properties(value: &str) -> Value {
    let mut object = Map::new();
    for (at, word) in value.split(',').enumerate() {
        let (name, text) = match word.split_once('=') {
            None if at == 0 => ("driver", word),
            None => (word, "on"),
            Some(pair) => pair,
        };
        let value = text
            .parse::<u64>()
            .map_or_else(|_| text.into(), Value::from);
        object.insert(name.to_owned(), value);
    }
    object.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_have_their_types() {
        assert_eq!(
            properties("some-device,id=echo,num_vqs=2"),
            serde_json::json!({ "driver": "some-device", "id": "echo", "num_vqs": 2 })
        );
    }

    #[test]
    fn comments_go_and_values_come_in() {
        let text = "# @NOT@ this\n-m @SIZE@\n\n-append @WORDS@\n";
        let words = fill_in(text, &[("SIZE", "512M"), ("WORDS", "a b")]).unwrap();
        assert_eq!(words, ["-m", "512M", "-append", "a b"]);
    }

    #[test]
    fn what_is_not_filled_in_is_named() {
        let error = fill_in("-m @SIZE@", &[]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "nothing is given for @SIZE@ in `-m @SIZE@`".replace("-m ", "")
        );
    }
}
