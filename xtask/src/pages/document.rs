//! A page in blocks, as Markdown for a forge and as roff for `man`.
//!
//! What belongs here: the two ways to write the same blocks. What does not: what a page says.

use roff::{Inline, Roff, bold, roman};

/// The width of Markdown's lines.
const WIDTH: usize = 100;

/// A part of a page. In its text, `` `this` `` is what a user types.
pub enum Block {
    /// The heading of a part.
    Part(String),
    /// The heading of something in it.
    Item(String),
    /// A paragraph.
    Text(String),
    /// Words and what each means.
    Words(Vec<(String, String)>),
    /// Lines as they are, and what language they are in.
    Lines(&'static str, String),
}

impl Block {
    pub fn part(text: &str) -> Self {
        Self::Part(text.to_owned())
    }

    pub fn text(text: &str) -> Self {
        Self::Text(text.to_owned())
    }

    pub fn words<T: ToString>(words: &[(T, &str)]) -> Self {
        let words = words.iter();
        Self::Words(
            words
                .map(|it| (it.0.to_string(), it.1.to_owned()))
                .collect(),
        )
    }
}

/// Blocks as Markdown.
pub fn markdown(blocks: &[Block]) -> String {
    let mut text = String::new();
    for block in blocks {
        match block {
            Block::Part(heading) => text += &format!("## {heading}\n"),
            Block::Item(heading) => text += &format!("### {heading}\n"),
            Block::Text(paragraph) => text += &wrap(paragraph, "", ""),
            Block::Words(words) => {
                for (word, meaning) in words {
                    text += &wrap(&format!("`{word}`: {meaning}"), "- ", "  ");
                }
            }
            Block::Lines(language, lines) => {
                text += &format!("```{language}\n{}\n```\n", lines.trim_end());
            }
        }
        text.push('\n');
    }
    text.truncate(text.trim_end().len());
    text + "\n"
}

/// A paragraph in lines that end with a line feed.
fn wrap(paragraph: &str, first: &str, others: &str) -> String {
    let (mut text, mut line) = (String::new(), first.to_owned());
    let mut is_empty = true;
    for word in paragraph.split_whitespace() {
        if !is_empty && line.chars().count() + 1 + word.chars().count() > WIDTH {
            text += &line;
            text.push('\n');
            line = others.to_owned();
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line += word;
        is_empty = false;
    }
    text + &line + "\n"
}

/// Blocks as roff, to be put behind a title. A manual page has its headings in capitals.
pub fn roff(blocks: &[Block]) -> Roff {
    let mut page = Roff::new();
    let mut after_heading = false;
    for block in blocks {
        let is_first = std::mem::replace(
            &mut after_heading,
            matches!(block, Block::Part(_) | Block::Item(_)),
        );
        match block {
            Block::Part(heading) => {
                let mut heading = heading.replace('`', "");
                // What a user types stays as it is typed.
                if !heading.starts_with('[') {
                    heading = heading.to_uppercase();
                }
                page.control("SH", [heading.as_str()]);
            }
            Block::Item(heading) => {
                let heading = heading.replace('`', "");
                page.control("SS", [heading.as_str()]);
            }
            Block::Text(paragraph) => {
                if !is_first {
                    page.control("PP", []);
                }
                page.text(inline(paragraph));
            }
            Block::Words(words) => {
                for (word, meaning) in words {
                    page.control("TP", []);
                    page.text([bold(word)]);
                    page.text(inline(meaning));
                }
            }
            Block::Lines(_, lines) => {
                if !is_first {
                    page.control("PP", []);
                }
                page.control("RS", ["4"]);
                page.control("nf", []);
                for line in lines.trim_end().lines() {
                    page.text([roman(line)]);
                }
                page.control("fi", []);
                page.control("RE", []);
            }
        }
    }
    page
}

/// What is between backticks in bold.
fn inline(text: &str) -> Vec<Inline> {
    let parts = text.split('`').enumerate();
    parts
        .filter(|(_, part)| !part.is_empty())
        .map(|(index, part)| {
            if index % 2 == 1 {
                bold(part)
            } else {
                roman(part)
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_the_same_in_markdown_and_in_roff() {
        let blocks = [
            Block::part("Files"),
            Block::text("The file `a-b` is 'it'."),
            Block::words(&[("0", "done")]),
            Block::Lines("sh", ".a \\n\n".to_owned()),
        ];
        assert_eq!(
            markdown(&blocks),
            "## Files\n\nThe file `a-b` is 'it'.\n\n- `0`: done\n\n```sh\n.a \\n\n```\n"
        );
        let page = roff(&blocks).render();
        for line in [
            ".SH FILES",
            "The file \\fBa\\-b\\fR is \\*(Aqit\\*(Aq.",
            ".TP\n\\fB0\\fR\ndone",
            ".nf\n\\&.a \\\\n\n.fi",
        ] {
            assert!(page.contains(line), "{line} is not in:\n{page}");
        }
    }

    #[test]
    fn lines_of_markdown_are_not_longer_than_others_in_the_repository() {
        let text = wrap(&"word ".repeat(50), "- ", "  ");
        assert!(text.lines().all(|line| line.len() <= WIDTH), "{text}");
        assert!(
            text.starts_with("- word") && text.contains("\n  word"),
            "{text}"
        );
    }
}
