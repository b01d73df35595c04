//! What a visitor may write into the guestbook: the form as it was sent, and an entry that is known to be valid.

use serde::Deserialize;

/// Longest name, in characters; the column of the database is as wide.
pub(crate) const NAME_LIMIT: usize = 40;
/// Longest message, in characters; the column of the database is as wide.
pub(crate) const MESSAGE_LIMIT: usize = 500;

/// The form as a visitor sent it. A field that is missing counts as empty.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Form {
    pub(crate) name: String,
    pub(crate) message: String,
}

/// What is wrong with a form, said to the visitor; at least one field is set.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Complaints {
    pub(crate) name: Option<String>,
    pub(crate) message: Option<String>,
}

/// A valid entry, not yet stored.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NewEntry {
    name: String,
    message: String,
}

impl NewEntry {
    /// Who wrote it: one line of 1 to [`NAME_LIMIT`] characters.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// What was written: 1 to [`MESSAGE_LIMIT`] characters, lines ending with `\n`.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }
}

impl TryFrom<&Form> for NewEntry {
    type Error = Complaints;

    fn try_from(form: &Form) -> Result<Self, Complaints> {
        let name = form.name.trim().to_owned();
        // Browsers send CR LF for the end of a line but count one character for it.
        let message = form.message.replace("\r\n", "\n").trim().to_owned();
        let complaints = Complaints {
            name: complain("name", &name, NAME_LIMIT, |_| false),
            message: complain("message", &message, MESSAGE_LIMIT, |c| matches!(c, '\n' | '\t')),
        };
        if complaints == Complaints::default() { Ok(Self { name, message }) } else { Err(complaints) }
    }
}

fn complain(field: &str, text: &str, limit: usize, is_allowed_control: fn(char) -> bool) -> Option<String> {
    let length = text.chars().count();
    if length == 0 {
        Some(format!("Please write a {field}."))
    } else if length > limit {
        Some(format!("This {field} has {length} characters; at most {limit} fit."))
    } else if text.chars().any(|c| c.is_control() && !is_allowed_control(c)) {
        Some(format!("This {field} contains control characters; please remove them."))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn validate(name: &str, message: &str) -> Result<NewEntry, Complaints> {
        NewEntry::try_from(&Form { name: name.into(), message: message.into() })
    }

    #[test]
    fn surrounding_space_is_cut_and_line_ends_are_unified() {
        let entry = validate("  Ada \n", "\r\n one\r\ntwo ").unwrap();
        assert_eq!((entry.name(), entry.message()), ("Ada", "one\ntwo"));
    }

    #[test]
    fn empty_fields_are_both_complained_of() {
        let complaints = validate(" ", "").unwrap_err();
        assert_eq!(complaints.name.as_deref(), Some("Please write a name."));
        assert_eq!(complaints.message.as_deref(), Some("Please write a message."));
    }

    #[test]
    fn limits_count_characters_and_not_bytes() {
        assert!(validate(&"é".repeat(NAME_LIMIT), &"日".repeat(MESSAGE_LIMIT)).is_ok());
        let complaints = validate(&"é".repeat(NAME_LIMIT + 1), "fine").unwrap_err();
        assert_eq!(complaints.name.as_deref(), Some("This name has 41 characters; at most 40 fit."));
        assert_eq!(complaints.message, None);
    }

    #[test]
    fn control_characters_are_refused() {
        assert!(validate("Ada\u{7}", "fine").is_err());
        assert!(validate("two\nlines", "fine").is_err());
        assert!(validate("Ada", "tabs\tand\nlines are fine").is_ok());
        assert!(validate("Ada", "an escape \u{1b}[2J").is_err());
    }
}
