//! The vendors' OpenAPI documents, as far as they are used: which operation a request is, and whether a body fits.

use serde_json::Value;

/// One vendor's document.
pub struct Document {
    whole: Value,
}

/// One operation, found by its request.
pub struct Operation<'a> {
    pub id: &'a str,
    /// What stands in the path's braces, in their order.
    pub path: Vec<String>,
    spec: &'a Value,
    whole: &'a Value,
}

/// The registrar's document.
pub fn vercel() -> Document {
    Document::read(include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vendors/vercel.openapi.json")))
}

/// The seller of servers' document.
pub fn cherry() -> Document {
    Document::read(include_str!(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/vendors/cherryservers.openapi.json"
    )))
}

impl Document {
    fn read(text: &str) -> Self {
        Self { whole: serde_json::from_str(text).expect("the document is JSON") }
    }

    /// The operation of a request; of two that fit, the one with fewer parameters.
    pub fn operation(&self, method: &str, path: &str) -> Option<Operation<'_>> {
        let asked: Vec<&str> = path.split('/').collect();
        let paths = self.whole["paths"].as_object().expect("paths");
        let mut found: Option<Operation<'_>> = None;
        for (pattern, methods) in paths {
            let spec = &methods[method.to_ascii_lowercase()];
            let parts: Vec<&str> = pattern.split('/').collect();
            if spec.is_null() || parts.len() != asked.len() {
                continue;
            }
            let fits =
                |(part, asked): (&&str, &&str)| part.starts_with('{') && !asked.is_empty() || part == asked;
            if !parts.iter().zip(&asked).all(fits) {
                continue;
            }
            let given = parts.iter().zip(&asked).filter(|(part, _)| part.starts_with('{'));
            let given: Vec<String> = given.map(|(_, asked)| (*asked).to_owned()).collect();
            if found.as_ref().is_none_or(|best| given.len() < best.path.len()) {
                let id = spec["operationId"].as_str().expect("an operation has an id");
                found = Some(Operation { id, path: given, spec, whole: &self.whole });
            }
        }
        found
    }

    /// Every operation: id, method, path.
    pub fn operations(&self) -> Vec<(String, String, String)> {
        let mut all = Vec::new();
        for (path, methods) in self.whole["paths"].as_object().expect("paths") {
            for (method, spec) in methods.as_object().expect("methods") {
                if let Some(id) = spec["operationId"].as_str() {
                    all.push((id.to_owned(), method.to_ascii_uppercase(), path.clone()));
                }
            }
        }
        all
    }

    /// Every operation that takes a body: id, method, path.
    pub fn operations_with_body(&self) -> Vec<(String, String, String)> {
        let mut all = self.operations();
        all.retain(|(_, method, path)| {
            !self.whole["paths"][path][method.to_ascii_lowercase()]["requestBody"].is_null()
        });
        all
    }

    /// The statuses that an operation documents, each with the names of its examples.
    pub fn answers(&self, id: &str) -> Vec<(u16, Vec<String>)> {
        let paths = self.whole["paths"].as_object().expect("paths");
        let specs = paths.values().flat_map(|methods| methods.as_object().expect("methods").values());
        let spec =
            specs.into_iter().find(|spec| spec["operationId"] == id).expect("the operation is documented");
        let answers = spec["responses"].as_object().expect("responses");
        answers
            .iter()
            .map(|(status, answer)| {
                let examples = answer["content"]["application/json"]["examples"].as_object();
                let names = examples.map(|examples| examples.keys().cloned().collect()).unwrap_or_default();
                (status.parse().expect("a status"), names)
            })
            .collect()
    }
}

impl Operation<'_> {
    /// What is wrong with a request's query and body.
    pub fn request_faults(&self, query: &[(String, String)], body: Option<&Value>) -> Vec<String> {
        let mut faults = Vec::new();
        let parameters = self.spec["parameters"].as_array().map_or(&[][..], Vec::as_slice);
        let mut in_query = parameters.iter().filter(|one| one["in"] == "query");
        for (name, _) in query {
            if !parameters.iter().any(|one| one["in"] == "query" && one["name"] == name.as_str()) {
                faults.push(format!("{}: the query {name} is not documented", self.id));
            }
        }
        if let Some(missing) = in_query.find(|one| {
            one["required"] == true && !query.iter().any(|(name, _)| one["name"] == name.as_str())
        }) {
            faults.push(format!("{}: the query {} is missing", self.id, missing["name"]));
        }
        let schema = &self.spec["requestBody"]["content"]["application/json"]["schema"];
        match (schema.is_null(), body) {
            (true, Some(_)) => faults.push(format!("{}: takes no body", self.id)),
            (false, None) => faults.push(format!("{}: needs a body", self.id)),
            (false, Some(body)) => check(self.whole, schema, body, "body", &mut faults),
            (true, None) => {}
        }
        faults
    }

    /// What is wrong with an answer.
    pub fn answer_faults(&self, status: u16, body: &[u8]) -> Vec<String> {
        let answer = &self.spec["responses"][status.to_string()];
        if answer.is_null() {
            return vec![format!("{}: {status} is not documented", self.id)];
        }
        let schema = &answer["content"]["application/json"]["schema"];
        let mut faults = Vec::new();
        match (schema.is_null(), body.is_empty()) {
            (true, false) => faults.push("a body that is not documented".to_owned()),
            (false, _) => match serde_json::from_slice(body) {
                Ok(value) => check(self.whole, schema, &value, "answer", &mut faults),
                Err(why) => faults.push(why.to_string()),
            },
            (true, true) => {}
        }
        faults.iter().map(|fault| format!("{} {status}: {fault}", self.id)).collect()
    }
}

fn check(whole: &Value, schema: &Value, value: &Value, at: &str, faults: &mut Vec<String>) {
    if let Some(name) = schema["$ref"].as_str() {
        let target = name.strip_prefix('#').and_then(|pointer| whole.pointer(pointer));
        return check(whole, target.expect("a reference inside the document"), value, at, faults);
    }
    if value.is_null() && schema["nullable"] == true {
        return;
    }
    for part in list(&schema["allOf"]) {
        check(whole, part, value, at, faults);
    }
    for key in ["anyOf", "oneOf"] {
        let branches = list(&schema[key]);
        let mut nearest: Option<Vec<String>> = None;
        for branch in branches {
            let mut own = Vec::new();
            check(whole, branch, value, at, &mut own);
            if nearest.as_ref().is_none_or(|best| own.len() < best.len()) {
                nearest = Some(own);
            }
        }
        faults.extend(nearest.unwrap_or_default());
    }
    if let Some(kind) = schema["type"].as_str()
        && !is_a(kind, value)
    {
        faults.push(format!("{at} is no {kind}: {value}"));
        return;
    }
    let choices = list(&schema["enum"]);
    if !choices.is_empty() && !choices.iter().any(|choice| same(choice, value)) {
        faults.push(format!("{at} is none of {}: {value}", schema["enum"]));
    }
    bounds(schema, value, at, faults);
    members(whole, schema, value, at, faults);
}

/// Numbers are equal by value: 429 and 429.0 are one.
fn same(a: &Value, b: &Value) -> bool {
    a == b || (a.is_number() && a.as_f64() == b.as_f64())
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn is_a(kind: &str, value: &Value) -> bool {
    match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "number" => value.is_number(),
        "integer" => value.is_i64() || value.is_u64(),
        other => panic!("the type {other} is not known here"),
    }
}

fn bounds(schema: &Value, value: &Value, at: &str, faults: &mut Vec<String>) {
    let mut bound = |name: &str, size: Option<f64>, is_least: bool| {
        let (Some(limit), Some(size)) = (schema[name].as_f64(), size) else { return };
        if (is_least && size < limit) || (!is_least && size > limit) {
            faults.push(format!("{at} is outside {name} {limit}: {value}"));
        }
    };
    let number = value.as_f64();
    bound("minimum", number, true);
    bound("maximum", number, false);
    let length = value.as_str().map(|text| text.chars().count() as f64);
    bound("minLength", length, true);
    bound("maxLength", length, false);
    let items = value.as_array().map(|items| items.len() as f64);
    bound("minItems", items, true);
    bound("maxItems", items, false);
    if let (Some(pattern), Some(text)) = (schema["pattern"].as_str(), value.as_str())
        && !matches_pattern(pattern, text)
    {
        faults.push(format!("{at} does not match {pattern}: {text}"));
    }
}

/// The three patterns of the documents, by hand: one of them needs what no regular expression crate has.
fn matches_pattern(pattern: &str, text: &str) -> bool {
    match pattern {
        r"^[A-Z]{2}$" => text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_uppercase()),
        r"^\S[\s\S]*\S$|^\S$|^$" => text.trim() == text,
        r"^(?=(?:\D*\d){7,15}$)\+[1-9]\d{0,2}\.?\d+$" => {
            let digits = text.bytes().filter(u8::is_ascii_digit).count();
            let rest = text.strip_prefix('+').unwrap_or("");
            let plain = rest.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
            (7..=15).contains(&digits) && plain && !rest.is_empty() && !rest.starts_with('0')
        }
        other => panic!("the pattern {other} is not known here"),
    }
}

fn members(whole: &Value, schema: &Value, value: &Value, at: &str, faults: &mut Vec<String>) {
    if let Some(items) = value.as_array().filter(|_| !schema["items"].is_null()) {
        for (index, item) in items.iter().enumerate() {
            check(whole, &schema["items"], item, &format!("{at}[{index}]"), faults);
        }
    }
    let Some(object) = value.as_object() else { return };
    for name in list(&schema["required"]).iter().filter_map(Value::as_str) {
        if !object.contains_key(name) {
            faults.push(format!("{at} has no {name}"));
        }
    }
    for (name, member) in object {
        let at = format!("{at}.{name}");
        let own = &schema["properties"][name];
        let others = &schema["additionalProperties"];
        if !own.is_null() {
            check(whole, own, member, &at, faults);
        } else if others == false {
            faults.push(format!("{at} is not documented"));
        } else if others.is_object() {
            check(whole, others, member, &at, faults);
        }
    }
}
