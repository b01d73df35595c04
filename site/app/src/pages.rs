//! The pages, as data for the templates in `templates/`, which escape whatever they show.

use askama::Template;

use crate::database::{Entry, Server, Visits};
use crate::entry::{Complaints, Form, MESSAGE_LIMIT, NAME_LIMIT};
use crate::web::Path;

/// The guestbook: who served it, the form, the entries.
#[derive(Template)]
#[template(path = "guestbook.html")]
pub(crate) struct Guestbook<'a> {
    pub(crate) path: &'a Path,
    pub(crate) app_server: &'a str,
    pub(crate) database: Server,
    pub(crate) visits: Visits,
    pub(crate) form: Form,
    pub(crate) complaints: Complaints,
    pub(crate) entries: Vec<Entry>,
    /// Where the next older entries begin, if there are any.
    pub(crate) older_before: Option<u64>,
}

/// What a visitor sees when something failed.
#[derive(Template)]
#[template(path = "failure.html")]
pub(crate) struct Failure<'a> {
    pub(crate) title: &'a str,
    pub(crate) explanation: &'a str,
    pub(crate) app_server: &'a str,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guestbook(path: &Path) -> Guestbook<'_> {
        Guestbook {
            path,
            app_server: "app1",
            database: Server { name: "db1".into(), version: "10.11".into() },
            visits: Visits { total: 1, by_app_server: [("app1".to_owned(), 1)].into() },
            form: Form::default(),
            complaints: Complaints::default(),
            entries: vec![],
            older_before: None,
        }
    }

    #[test]
    fn what_visitors_and_headers_say_is_escaped() {
        let path = Path { web_server: "<web>".into(), client: Some("<client>".into()) };
        let mut page = guestbook(&path);
        page.form = Form { name: "\"><script>".into(), message: "</textarea><script>".into() };
        page.entries = vec![Entry {
            id: 7,
            name: "<b>Ada</b>".into(),
            message: "<script>alert(1)</script>".into(),
            created_at: "2026-01-31 12:00".into(),
            web_server: "<web>".into(),
            app_server: "app1".into(),
        }];
        let html = page.render().unwrap();
        for raw in ["<script>", "<b>Ada", "<web>", "<client>"] {
            assert!(!html.contains(raw), "{raw} is not escaped");
        }
        assert!(html.contains("&#60;script&#62;alert(1)&#60;/script&#62;"));
    }

    #[test]
    fn complaints_stand_at_their_fields_and_keep_what_was_typed() {
        let path = Path { web_server: "web1".into(), client: None };
        let mut page = guestbook(&path);
        page.form.message = "kept".into();
        page.complaints.name = Some("Please write a name.".into());
        let html = page.render().unwrap();
        assert!(html.contains("aria-invalid=\"true\""));
        assert!(html.contains("Please write a name."));
        assert!(html.contains(">kept</textarea>"));
    }
}
