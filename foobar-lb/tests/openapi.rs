//! The API is as it describes itself: every route is described, what is described is there, and what a request must look
//! like to be taken in is what the description says. Requests are made from the description, right ones and wrong ones,
//! and sent through the real routes; behind them somebody notes what gets through. What the daemon answers is compared
//! with the description by the traffic tests.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::connect_info::MockConnectInfo,
    http::{Method, Request, StatusCode, header},
};
use foobar_lb::api::{self, Rights};
use jsonschema::Validator;
use proptest::{prelude::*, sample::Index, test_runner::TestRunner};
use serde_json::{Map, Value, json};
use tokio::{net::UnixStream, runtime::Runtime, sync::mpsc};
use tower::ServiceExt;

/// What the daemon would do with an answer is of no interest here.
const READ_AT_MOST: usize = 1 << 20;

#[test]
fn what_is_described_is_there_and_takes_no_other_method() {
    let door = Door::new();
    let operations = operations();
    let described: Vec<&str> = operations.iter().map(|operation| operation.path.as_str()).collect();
    for path in ["/v1/status", "/v1/detach", "/v1/backends", "/v1/services", "/v1/reload"] {
        assert!(described.contains(&path), "{path} is not described");
    }
    for operation in &operations {
        for method in [Method::GET, Method::POST, Method::PUT, Method::DELETE, Method::PATCH] {
            let is_described =
                operations.iter().any(|other| other.path == operation.path && other.method == method);
            let answer = door.knock(method.clone(), &operation.path, b"", "application/json");
            assert_eq!(answer.code == StatusCode::METHOD_NOT_ALLOWED, !is_described, "{method} {answer:?}");
            assert_ne!(answer.code, StatusCode::NOT_FOUND, "{method} {answer:?}");
        }
    }
}

#[test]
fn the_description_is_served() {
    let answer = Door::new().knock(Method::GET, "/v1/openapi.json", b"", "application/json");
    let served: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!((answer.code, served), (StatusCode::OK, description()));
}

#[test]
fn what_is_not_there_is_refused_in_words() {
    let door = Door::new();
    for path in ["/", "/v1", "/v1/statu", "/v2/status", "/v1/status/"] {
        let answer = door.knock(Method::GET, path, b"", "application/json");
        assert_eq!(answer.code, StatusCode::NOT_FOUND);
        answer.expect_failure(&[path, "/v1/openapi.json"]);
    }
    let put = door.knock(Method::PUT, "/v1/status", b"", "application/json");
    put.expect_failure(&["/v1/status does not take PUT"]);
}

#[test]
fn a_body_that_is_not_what_it_should_be_is_refused_in_words() {
    let door = Door::new();
    let post = |body: &[u8], kind| door.knock(Method::POST, "/v1/backends", body, kind);
    let cases: [(&[u8], &str, StatusCode, &str); 6] = [
        (b"{", "application/json", StatusCode::BAD_REQUEST, "EOF"),
        (b"\xff\xfe", "application/json", StatusCode::BAD_REQUEST, "JSON"),
        (b"{}", "application/json", StatusCode::UNPROCESSABLE_ENTITY, "missing field `service`"),
        (b"{}", "text/plain", StatusCode::UNSUPPORTED_MEDIA_TYPE, "application/json"),
        (
            br#"{"service": "www", "backends": ["web1"], "word": "drian"}"#,
            "application/json",
            StatusCode::UNPROCESSABLE_ENTITY,
            "unknown variant `drian`, expected one of `enable`, `drain`",
        ),
        (
            br#"{"service": "www", "backends": ["web1"], "word": {"weight": 1001}}"#,
            "application/json",
            StatusCode::UNPROCESSABLE_ENTITY,
            "weight 1001 is out of range: 0 to 1000",
        ),
    ];
    for (body, kind, code, why) in cases {
        let answer = post(body, kind);
        assert_eq!(answer.code, code, "{answer:?}");
        answer.expect_failure(&[why]);
    }
    let huge = post(&vec![b' '; 64 << 20], "application/json");
    assert_eq!(huge.code, StatusCode::PAYLOAD_TOO_LARGE);
    huge.expect_failure(&["length limit"]);
    assert_eq!(door.count(), 0, "the daemon heard of it");
}

#[test]
fn where_only_reading_is_allowed_nothing_is_changed() {
    let door = Door::with(Rights::Read);
    let reads = ["/v1/status", "/v1/services/www/backends/web1", "/v1/plan"];
    for operation in operations() {
        let answer = door.knock(operation.method, &operation.path, b"{}", "application/json");
        assert_eq!(
            answer.code == StatusCode::FORBIDDEN,
            !reads.contains(&operation.path.as_str()),
            "{answer:?}"
        );
    }
    assert_eq!(door.count(), 2, "what changes something got through");
}

/// The description and what reads requests agree on every one: what is valid gets through, and nothing else does.
#[test]
fn what_is_valid_gets_through_and_nothing_else() {
    let door = Door::new();
    for operation in operations().into_iter().filter(|operation| operation.body.is_some()) {
        let schema = operation.body.as_ref().expect("they have one");
        let validator = validator(schema);
        let requests = (valid(schema), prop::collection::vec(change(), 0..3));
        let checked =
            TestRunner::new(ProptestConfig::with_cases(2000)).run(&requests, |(mut body, changes)| {
                changes.iter().for_each(|change| change.make(&mut body));
                let before = door.count();
                let bytes = body.to_string().into_bytes();
                let answer =
                    door.knock(operation.method.clone(), &operation.path, &bytes, "application/json");
                prop_assert_eq!(door.count() > before, validator.is_valid(&body), "{} {:?}", body, answer);
                if door.count() == before {
                    prop_assert!(answer.code.is_client_error(), "{} {:?}", body, answer);
                    answer.expect_failure(&[]);
                }
                Ok(())
            });
        checked.unwrap_or_else(|error| panic!("{}: {error}", operation.path));
    }
}

/// Whatever bytes come, they are answered in words.
#[test]
fn no_bytes_get_through_that_are_no_request() {
    let door = Door::new();
    let operations = operations();
    let request = (any::<Index>(), prop::collection::vec(any::<u8>(), 0..200), "[ -~]{0,30}");
    let checked = TestRunner::default().run(&request, |(which, bytes, kind)| {
        let operation = which.get(&operations);
        let answer = door.knock(operation.method.clone(), &operation.path, &bytes, &kind);
        answer.expect_failure(&[]);
        prop_assert!(operation.body.is_none() || answer.code.is_client_error(), "{:?}", answer);
        Ok(())
    });
    checked.unwrap_or_else(|error| panic!("{error}"));
}

/// The real routes. The daemon behind them is ending: it takes requests and answers none.
struct Door {
    runtime: Runtime,
    routes: Router,
    heard: Arc<AtomicUsize>,
}

impl Door {
    fn new() -> Self {
        Self::with(Rights::Change)
    }

    fn with(rights: Rights) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime starts");
        let ends = runtime.block_on(async { UnixStream::pair() }).expect("a socket is made");
        let peer = MockConnectInfo(api::Peer::of(&ends.0));
        let (events, mut coming) = mpsc::channel(1);
        let heard = Arc::<AtomicUsize>::default();
        let count = heard.clone();
        runtime.spawn(async move {
            while let Some(event) = coming.recv().await {
                count.fetch_add(1, Ordering::SeqCst);
                drop(event);
            }
        });
        Self { runtime, routes: api::routes(events, rights).layer(peer), heard }
    }

    /// How many requests got through so far.
    fn count(&self) -> usize {
        self.heard.load(Ordering::SeqCst)
    }

    fn knock(&self, method: Method, path: &str, body: &[u8], kind: &str) -> Answer {
        let request = Request::builder().method(method).uri(path).header(header::CONTENT_TYPE, kind);
        let request = request.body(Body::from(body.to_vec())).expect("it is a request");
        self.runtime.block_on(async {
            let response = self.routes.clone().oneshot(request).await.expect("routes always answer");
            let code = response.status();
            let body = to_bytes(response.into_body(), READ_AT_MOST).await.expect("it is short");
            Answer { code, body: String::from_utf8(body.to_vec()).expect("it is text") }
        })
    }
}

#[derive(Debug)]
struct Answer {
    code: StatusCode,
    body: String,
}

impl Answer {
    /// It must be a failure as described, and contain all of `words`.
    fn expect_failure(&self, words: &[&str]) {
        assert!(!self.code.is_success(), "{self:?}");
        let body: Value = serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("{self:?}"));
        let failure = validator(&json!({"$ref": "#/components/schemas/Failure"}));
        assert!(failure.is_valid(&body), "{self:?}");
        let error = body["error"].as_str().expect("it is valid");
        assert!(!error.is_empty());
        words.iter().for_each(|word| assert!(error.contains(word), "{error} does not say {word}"));
    }
}

struct Operation {
    path: String,
    method: Method,
    /// The schema of what it asks for.
    body: Option<Value>,
}

fn description() -> Value {
    serde_json::to_value(api::openapi()).expect("it is JSON")
}

fn operations() -> Vec<Operation> {
    let description = description();
    let paths = description["paths"].as_object().expect("there are paths");
    let operation = |path: &String, method: &String, operation: &Value| Operation {
        // Names are part of the path of some.
        path: path.replace("{service}", "www").replace("{backend}", "web1"),
        method: method.to_uppercase().parse().expect("it is a method"),
        body: operation.pointer("/requestBody/content/application~1json/schema").cloned(),
    };
    paths
        .iter()
        .flat_map(|(path, methods)| {
            let methods = methods.as_object().expect("a path has methods").iter();
            methods.map(move |(method, described)| operation(path, method, described))
        })
        .collect()
}

fn validator(schema: &Value) -> Validator {
    let mut schema = schema.clone();
    schema["components"] = description()["components"].clone();
    jsonschema::validator_for(&schema).expect("it is a schema")
}

/// Values that a schema describes.
fn valid(schema: &Value) -> BoxedStrategy<Value> {
    if let Some(name) = schema["$ref"].as_str() {
        return valid(description().pointer(name.trim_start_matches('#')).expect("what is named is there"));
    }
    if let Some(choices) = schema["oneOf"].as_array() {
        return prop::strategy::Union::new(choices.iter().map(valid)).boxed();
    }
    if let Some(values) = schema["enum"].as_array() {
        return prop::sample::select(values.clone()).boxed();
    }
    match schema["type"].as_str().or_else(|| schema["type"][0].as_str()) {
        Some("object") => valid_object(schema),
        Some("array") => prop::collection::vec(valid(&schema["items"]), 0..4).prop_map(Value::from).boxed(),
        Some("string") => "[a-z0-9._-]{0,12}".prop_map(Value::from).boxed(),
        Some("boolean") => any::<bool>().prop_map(Value::from).boxed(),
        Some("integer") => {
            let [least, most] =
                [("minimum", 0), ("maximum", 1 << 32)].map(|(key, or)| schema[key].as_u64().unwrap_or(or));
            (least..=most).prop_map(Value::from).boxed()
        }
        Some("null") => Just(Value::Null).boxed(),
        _ => panic!("no values are made of {schema}"),
    }
}

fn valid_object(schema: &Value) -> BoxedStrategy<Value> {
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    let empty = Just(Map::new()).boxed();
    let properties = schema["properties"].as_object().expect("an object has properties");
    let object = properties.iter().fold(empty, |object, (name, schema)| {
        let (name, is_required) = (name.clone(), required.contains(&json!(name)));
        let add = move |(mut object, value, there): (Map<String, Value>, Value, bool)| {
            if there || is_required {
                object.insert(name.clone(), value);
            }
            object
        };
        (object, valid(schema), any::<bool>()).prop_map(add).boxed()
    });
    object.prop_map(Value::Object).boxed()
}

/// Something that may be wrong with a request.
#[derive(Clone, Debug)]
enum Change {
    /// Somewhere there is something else.
    Replace(Index, Value),
    /// An object lacks something.
    Remove(Index),
    /// An object has something that nobody knows.
    Add(Index),
}

fn change() -> impl Strategy<Value = Change> {
    let others = [
        json!(null),
        json!(true),
        json!(-1),
        json!(0.5),
        json!(1001),
        json!(70_000),
        json!(u64::MAX),
        json!("weight"),
        json!([]),
        json!([1]),
        json!({}),
        json!({"weight": "1"}),
    ];
    prop_oneof![
        (any::<Index>(), prop::sample::select(others.to_vec()))
            .prop_map(|(place, value)| Change::Replace(place, value)),
        any::<Index>().prop_map(Change::Remove),
        any::<Index>().prop_map(Change::Add),
    ]
}

impl Change {
    fn make(&self, body: &mut Value) {
        let mut places = Vec::new();
        note_places(body, String::new(), &mut places);
        let (Self::Replace(place, _) | Self::Remove(place) | Self::Add(place)) = self;
        let place = place.get(&places);
        let value = body.pointer_mut(place).expect("it was found there");
        match (self, value) {
            (Self::Replace(_, other), value) => *value = other.clone(),
            (Self::Remove(_), Value::Object(object)) => {
                let first = object.keys().next().cloned();
                first.and_then(|key| object.remove(&key));
            }
            (Self::Add(_), Value::Object(object)) => drop(object.insert("srevice".to_owned(), json!("www"))),
            _ => {}
        }
    }
}

/// The places of a value and of all that is in it.
fn note_places(value: &Value, place: String, places: &mut Vec<String>) {
    match value {
        Value::Object(object) => {
            object.iter().for_each(|(key, value)| note_places(value, format!("{place}/{key}"), places));
        }
        Value::Array(array) => {
            let entries = array.iter().enumerate();
            entries.for_each(|(number, value)| note_places(value, format!("{place}/{number}"), places));
        }
        _ => {}
    }
    places.push(place);
}
