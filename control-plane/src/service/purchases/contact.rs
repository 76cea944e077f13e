//! Who domains are registered to: as the request says, else as the server is configured.

use otonix_sdk::api::purchases;
use otonix_sdk::error::ErrorCode;
use otonix_sdk::limits;
use serde_json::Value;

use crate::app::App;
use crate::error::Error;
use crate::upstream::providers::{Contact, DomainName, Purpose};

/// The contact of a purchase; `None` when there is none.
pub fn of(app: &App, given: Option<purchases::Contact>) -> Option<Contact> {
    given.map(convert).or_else(|| app.registrant.clone().map(convert))
}

fn convert(given: purchases::Contact) -> Contact {
    Contact {
        first_name: given.first_name,
        last_name: given.last_name,
        email: given.email,
        phone: given.phone,
        address1: given.address1,
        city: given.city,
        state: given.state,
        zip: given.zip,
        country: given.country,
        address2: given.address2,
        company_name: given.company_name,
        additional: given.additional,
    }
}

fn is_one_line(field: &str, text: &str) -> Result<(), Error> {
    if text.chars().any(char::is_control) {
        return Err(Error::invalid(field, "must not have control characters"));
    }
    Ok(())
}

/// Checks what every registry asks for.
///
/// # Errors
/// 400 naming the field.
pub fn check(contact: &purchases::Contact) -> Result<(), Error> {
    let texts = [
        ("contact.firstName", &contact.first_name),
        ("contact.lastName", &contact.last_name),
        ("contact.email", &contact.email),
        ("contact.address1", &contact.address1),
        ("contact.city", &contact.city),
        ("contact.state", &contact.state),
        ("contact.zip", &contact.zip),
    ];
    for (field, text) in texts {
        limits::check_text(field, text, 1..=255)?;
        if text.trim() != text {
            return Err(Error::invalid(field, "must not begin or end with a space"));
        }
        is_one_line(field, text)?;
    }
    for (field, text) in
        [("contact.address2", &contact.address2), ("contact.companyName", &contact.company_name)]
    {
        if let Some(text) = text {
            limits::check_text(field, text, 0..=255)?;
            is_one_line(field, text)?;
        }
    }
    let digits = contact.phone.strip_prefix('+').unwrap_or("");
    if !(7..=15).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Error::invalid("contact.phone", "must be + and 7 to 15 digits"));
    }
    if contact.country.len() != 2 || !contact.country.bytes().all(|byte| byte.is_ascii_uppercase()) {
        return Err(Error::invalid("contact.country", "must be two capitals (ISO 3166)"));
    }
    let at = contact.email.split_once('@');
    if !at.is_some_and(|(name, host)| !name.is_empty() && host.contains('.')) {
        return Err(Error::invalid("contact.email", "must be an e-mail address"));
    }
    if serde_json::to_string(&contact.additional).map_or(0, |text| text.len()) > 4096 {
        return Err(Error::invalid("contact.additional", "is too large"));
    }
    Ok(())
}

/// Checks that there is a contact and that it has what this name's registry asks for beyond the usual.
///
/// # Errors
/// 400 `contact_required`, or naming the field; 503 when the registrar does not say.
pub async fn demand(app: &App, name: &DomainName, given: Option<&purchases::Contact>) -> Result<(), Error> {
    if let Some(given) = given {
        check(given)?;
    }
    let Some(contact) = of(app, given.cloned()) else {
        return Err(Error::Invalid {
            code: ErrorCode::ContactRequired,
            field: "contact".to_owned(),
            why: "is needed: this server is configured with none".to_owned(),
        });
    };
    let Some(registrar) = app.vendors.domains_for(Purpose::Quote) else { return Ok(()) };
    let schema = registrar.contact_schema(name).await.map_err(crate::service::pricing::vendor_error)?;
    let required = schema.as_ref().and_then(|schema| schema.get("required")).and_then(Value::as_array);
    for field in required.into_iter().flatten().filter_map(Value::as_str) {
        if !contact.additional.contains_key(field) {
            return Err(Error::invalid(
                &format!("contact.additional.{field}"),
                format!("is needed for .{}", name.tld()),
            ));
        }
    }
    Ok(())
}
