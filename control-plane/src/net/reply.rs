//! Answers given before a request exists: written byte by byte, in the contract's form.

use std::borrow::Cow;

use bytes::Bytes;
use http::StatusCode;
use otonix_sdk::clock;
use otonix_sdk::error::{ErrorCode, Problem};

/// The answer to a head that hyper refused, given the one that hyper would have sent.
pub(crate) fn refusal(of_hyper: &[u8]) -> Bytes {
    let status = of_hyper.get(9..12).and_then(|code| StatusCode::from_bytes(code).ok());
    match status {
        Some(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE) => head_too_large(),
        Some(StatusCode::URI_TOO_LONG) => problem(
            StatusCode::URI_TOO_LONG,
            ErrorCode::PayloadTooLarge,
            "the request's address is too long",
            None,
        ),
        _ => problem(StatusCode::BAD_REQUEST, ErrorCode::BadRequest, "the request's head is malformed", None),
    }
}

/// 431: the head is larger than allowed.
pub(crate) fn head_too_large() -> Bytes {
    let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
    problem(status, ErrorCode::PayloadTooLarge, "the request's head is too large", None)
}

/// 408: the head did not arrive in time.
pub(crate) fn head_too_slow() -> Bytes {
    let status = StatusCode::REQUEST_TIMEOUT;
    problem(status, ErrorCode::RequestTimeout, "the request's head did not arrive in time", None)
}

/// 503: no room for another connection.
pub(crate) fn too_many_connections() -> Bytes {
    let status = StatusCode::SERVICE_UNAVAILABLE;
    problem(status, ErrorCode::Overloaded, "too many connections are open", Some(5))
}

fn problem(status: StatusCode, code: ErrorCode, detail: &str, retry_after_secs: Option<u32>) -> Bytes {
    let title = status.canonical_reason().unwrap_or("Error");
    let problem = Problem {
        kind: Cow::Borrowed("about:blank"),
        title: Cow::Borrowed(title),
        status: status.as_u16(),
        detail: detail.to_owned(),
        code: Cow::Borrowed(code.as_str()),
        error: detail.to_owned(),
        request_id: clock::new_id().to_string(),
    };
    let body = serde_json::to_string(&problem).expect("texts and a number always make JSON");
    let retry = retry_after_secs.map_or_else(String::new, |secs| format!("retry-after: {secs}\r\n"));
    Bytes::from(format!(
        "HTTP/1.1 {} {title}\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\n\
         cache-control: no-store\r\n{retry}connection: close\r\n\r\n{body}",
        status.as_u16(),
        body.len()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &Bytes) -> (String, Problem) {
        let text = std::str::from_utf8(bytes).expect("text");
        let (head, body) = text.split_once("\r\n\r\n").expect("head and body");
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())));
        (head.to_owned(), serde_json::from_str(body).expect("a problem"))
    }

    #[test]
    fn refusals_keep_hypers_status_and_take_the_contracts_form() {
        for (given, status, code) in [
            ("HTTP/1.1 400 Bad Request\r\n", 400, "bad_request"),
            ("HTTP/1.1 414 URI Too Long\r\n", 414, "payload_too_large"),
            ("HTTP/1.1 431 Request Header Fields Too Large\r\n", 431, "payload_too_large"),
            ("HTTP/1.1", 400, "bad_request"),
        ] {
            let (head, problem) = parse(&refusal(given.as_bytes()));
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
            assert_eq!(problem.status, status);
            assert_eq!(problem.code, code);
            assert_eq!(problem.error, problem.detail);
            assert!(!problem.request_id.is_empty());
        }
    }

    #[test]
    fn overload_says_when_to_come_back() {
        let (head, problem) = parse(&too_many_connections());
        assert!(head.contains("retry-after: 5\r\n"));
        assert_eq!(problem.code, "overloaded");
    }
}
