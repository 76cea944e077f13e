//! The fake itself: it remembers, it goes wrong as it is told, and it keeps to the vendors' documents.

use serde_json::json;

use crate::fake::{Fake, schema};
use crate::support::Call;

#[test]
fn one_address_can_serve_both_vendors() {
    let (vercel, cherry) = (schema::vercel(), schema::cherry());
    assert_eq!((vercel.operations().len(), cherry.operations().len()), (20, 17));
    for (_, method, path) in vercel.operations() {
        assert!(cherry.operation(&method, &path).is_none(), "{method} {path}");
    }
}

#[tokio::test]
async fn a_request_that_is_not_as_documented_is_noticed() {
    let fake = Fake::start();
    assert!(fake.violations().is_empty());
    let answer = Call::new(fake.addr(), "POST", "/v1/registrar/domains/availability")
        .header("authorization", format!("Bearer {}", fake.token()))
        .json(json!({"domains": []}))
        .await;
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert!(fake.violations()[0].contains("minItems"), "{:?}", fake.violations());
}
