//! Cherry Servers: sells servers. What it says is read in `cherry_words.rs`.

use std::num::NonZeroU32;
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use governor::Quota;
use otonix_sdk::secret::Secret;
use reqwest::{Method, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use tokio::sync::OnceCell;

use crate::upstream::cherry_words::{
    self as words, AccountSaid, CycleSaid, ImageSaid, PlanSaid, ProjectSaid, RegionSaid, ServerSaid, TeamSaid,
};
use crate::upstream::compute::{
    Account, CreateServer, Created, Cycle, Image, Plan, Project, Region, Server, ServerAction, Team,
};
use crate::upstream::deadline::Deadline;
use crate::upstream::http::{Answer, Ask, BadVendorUrl, Counts, Endpoint};
use crate::upstream::names::Slug;
use crate::upstream::providers::{ComputeProvider, Purpose, Refusal, VendorError};

/// The vendor's own address.
pub const DEFAULT_URL: &str = "https://api.cherryservers.com";
/// Requests a second, evenly: the vendor refuses about the fifth from one address. Two are anyone's, one is for
/// prices and one for purchases alone.
const PACE: Quota = Quota::per_second(NonZeroU32::new(2).expect("not zero")).allow_burst(NonZeroU32::MIN);
const QUOTES: Quota = Quota::per_second(NonZeroU32::MIN);
const PURCHASES: Quota = Quota::per_second(NonZeroU32::MIN);
/// Rows of a page.
const PAGE: usize = 100;
/// Pages read of one list.
const MAX_PAGES: usize = 100;
/// How often a list is read that changes meanwhile.
const READS: usize = 3;

/// The account at Cherry Servers.
pub struct Cherry {
    http: Endpoint,
    /// As configured.
    team: Option<u64>,
    project: Option<u64>,
    found_team: OnceCell<u64>,
    /// The vendor's slugs of billing cycles.
    cycles: OnceCell<Vec<(Cycle, Slug)>>,
}

impl Cherry {
    /// The account of a token, at an address, billed to a team; without one, to that of the project.
    ///
    /// # Errors
    /// [`BadVendorUrl`] when the address is none.
    pub fn new(
        base: Url,
        token: Secret,
        team: Option<u64>,
        project: Option<u64>,
    ) -> Result<Self, BadVendorUrl> {
        Ok(Self {
            http: Endpoint::new("cherry", base, token, PACE, words::Words)?,
            team,
            project,
            found_team: OnceCell::new(),
            cycles: OnceCell::new(),
        })
    }

    /// The same account, with a share of the pace for one purpose.
    #[must_use]
    pub fn asked_for(&self, purpose: Purpose) -> Self {
        let share = match purpose {
            Purpose::Quote => QUOTES,
            Purpose::Purchase => PURCHASES,
        };
        Self {
            http: self.http.with_share(share),
            team: self.team,
            project: self.project,
            found_team: self.found_team.clone(),
            cycles: self.cycles.clone(),
        }
    }

    /// What was asked of it.
    pub fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.http.counts)
    }

    async fn get<T: DeserializeOwned>(&self, path: &[&str]) -> Result<T, VendorError> {
        let answer = self.http.read(&Ask::get(path)).await?;
        serde_json::from_slice(&answer.body).map_err(|_| unreadable("not what is documented"))
    }

    /// All rows of a list that this version can read.
    async fn list<T: DeserializeOwned>(&self, path: &[&str]) -> Result<Vec<T>, VendorError> {
        let rows = self.rows(path).await?;
        Ok(rows.iter().filter_map(|row| serde_json::from_str(row.get()).ok()).collect())
    }

    /// All rows of a list, which stay texts until their type reads them: money must not pass through a float. A list
    /// that changes while it is read is read again.
    async fn rows(&self, path: &[&str]) -> Result<Vec<Box<RawValue>>, VendorError> {
        for _ in 0..READS {
            if let Some(rows) = self.rows_at_once(path).await? {
                return Ok(rows);
            }
        }
        Err(unreadable("a list that changes while it is read"))
    }

    /// The same, once; `None` when it has changed meanwhile. Each page begins with the last row of the one before: a row
    /// that went or came above moves all that follow, and one of them would not be seen.
    async fn rows_at_once(&self, path: &[&str]) -> Result<Option<Vec<Box<RawValue>>>, VendorError> {
        let mut all: Vec<(Option<u64>, Box<RawValue>)> = Vec::new();
        let (mut offset, mut total, mut edge) = (0, None, None);
        for page in 0..MAX_PAGES {
            let query = [("limit", PAGE.to_string()), ("offset", offset.to_string())];
            let answer = self.http.read(&Ask { query: &query, ..Ask::get(path) }).await?;
            let rows: Vec<Box<RawValue>> =
                serde_json::from_slice(&answer.body).map_err(|_| unreadable("not a list"))?;
            let id_of = |row: &RawValue| serde_json::from_str::<IdOnly>(row.get()).ok().map(|row| row.id);
            let first = rows.first().map(|row| id_of(row));
            if page > 0 && (answer.total != total || edge.is_some_and(|last| first != Some(last))) {
                return Ok(None);
            }
            total = answer.total;
            let count = rows.len();
            for row in rows {
                let id = id_of(&row);
                if id.is_none() || !all.iter().any(|(known, _)| *known == id) {
                    all.push((id, row));
                }
                edge = Some(id);
            }
            if count == 0 || total.map_or(count < PAGE, |total| offset + count >= total) {
                return Ok(Some(all.into_iter().map(|(_, row)| row).collect()));
            }
            // A page of one row is no beginning of another.
            edge = edge.filter(|_| count > 1);
            offset += (count - 1).max(1);
        }
        Err(unreadable("a list without end"))
    }

    /// Who is billed: as configured, else the only team of the token, else the one that has the project.
    async fn team(&self) -> Result<u64, VendorError> {
        if let Some(team) = self.team {
            return Ok(team);
        }
        let find = || async {
            let teams: Vec<TeamSaid> = self.list(&["v1", "teams"]).await?;
            if let [only] = teams.as_slice() {
                return Ok(only.id);
            }
            let Some(wanted) = self.project else {
                let what = "the token has several teams; configure cherry-team or cherry-project";
                return Err(VendorError::not_done(Refusal::Unauthorised, what));
            };
            for team in &teams {
                let projects = self.projects(team.id).await?;
                if projects.iter().any(|project| project.id == wanted) {
                    return Ok(team.id);
                }
            }
            let what = format!("no team of the token has the project {wanted}");
            Err(VendorError::not_done(Refusal::Unauthorised, what))
        };
        self.found_team.get_or_try_init(find).await.copied()
    }

    /// The vendor's own slug of a cycle: only `hourly` is certain.
    async fn cycle_slug(&self, cycle: Cycle) -> Result<Slug, VendorError> {
        let find = || async {
            let said: Vec<CycleSaid> = self.list(&["v1", "cycles"]).await?;
            Ok(said.iter().filter_map(CycleSaid::known).collect::<Vec<_>>())
        };
        let cycles = self.cycles.get_or_try_init(find).await?;
        let known = cycles.iter().find(|(known, _)| *known == cycle);
        known.map(|(_, slug)| slug.clone()).ok_or_else(|| {
            VendorError::not_done(Refusal::Invalid, format!("cherry does not bill {}", cycle.as_str()))
        })
    }

    async fn send(
        &self,
        path: &[&str],
        body: &Value,
        secrets: &[&Secret],
        until: Deadline,
    ) -> Result<Answer, VendorError> {
        let body = Some(body.to_string().into_bytes());
        self.http.write(&Ask { method: Method::POST, path, query: &[], body, secrets }, until).await
    }

    /// As `get`; a 404 is `None`.
    async fn find<T: DeserializeOwned>(&self, path: &[&str]) -> Result<Option<T>, VendorError> {
        match self.get(path).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.refusal() == Some(Refusal::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn find_server(&self, id: u64) -> Result<Option<ServerSaid>, VendorError> {
        self.find(&["v1", "servers", &id.to_string()]).await
    }

    /// Who is billed, with the VAT.
    async fn billed(&self) -> Result<TeamSaid, VendorError> {
        self.get(&["v1", "teams", &self.team().await?.to_string()]).await
    }
}

#[derive(Deserialize)]
struct IdOnly {
    id: u64,
}

fn unreadable(why: &str) -> VendorError {
    VendorError::not_done(Refusal::Unavailable, format!("cherry's answer cannot be read: {why}"))
}

fn encoded(script: &Secret) -> String {
    STANDARD.encode(script.expose())
}

#[async_trait]
impl ComputeProvider for Cherry {
    async fn account(&self) -> Result<Account, VendorError> {
        Ok(self.get::<AccountSaid>(&["v1", "user"]).await?.into())
    }

    async fn plans(&self) -> Result<Vec<Plan>, VendorError> {
        let billed = self.billed().await?;
        let plans: Vec<PlanSaid> = self.list(&["v1", "teams", &billed.id.to_string(), "plans"]).await?;
        Ok(plans.into_iter().filter_map(|plan| plan.known(billed.vat())).collect())
    }

    async fn plan(&self, plan: &Slug) -> Result<Option<Plan>, VendorError> {
        let Some(said) = self.find::<PlanSaid>(&["v1", "plans", plan.as_str()]).await? else {
            return Ok(None);
        };
        Ok(said.known(self.billed().await?.vat()).filter(|found| found.slug == *plan))
    }

    async fn regions(&self) -> Result<Vec<Region>, VendorError> {
        let regions: Vec<RegionSaid> = self.list(&["v1", "regions"]).await?;
        Ok(regions.into_iter().filter_map(RegionSaid::known).collect())
    }

    async fn region(&self, region: &Slug) -> Result<Option<Region>, VendorError> {
        let said: Option<RegionSaid> = self.find(&["v1", "regions", region.as_str()]).await?;
        Ok(said.and_then(RegionSaid::known))
    }

    async fn images(&self, plan: &Slug) -> Result<Vec<Image>, VendorError> {
        let images: Vec<ImageSaid> = self.list(&["v1", "plans", plan.as_str(), "images"]).await?;
        Ok(images.into_iter().filter_map(ImageSaid::known).collect())
    }

    async fn teams(&self) -> Result<Vec<Team>, VendorError> {
        let teams: Vec<TeamSaid> = self.list(&["v1", "teams"]).await?;
        Ok(teams.into_iter().map(Team::from).collect())
    }

    async fn projects(&self, team: u64) -> Result<Vec<Project>, VendorError> {
        let projects: Vec<ProjectSaid> = self.list(&["v1", "teams", &team.to_string(), "projects"]).await?;
        Ok(projects.into_iter().map(Project::from).collect())
    }

    async fn project(&self, id: u64) -> Result<Option<Project>, VendorError> {
        let said: Option<ProjectSaid> = self.find(&["v1", "projects", &id.to_string()]).await?;
        Ok(said.map(Project::from))
    }

    async fn servers(&self, project: u64) -> Result<Vec<Server>, VendorError> {
        let rows = self.rows(&["v1", "projects", &project.to_string(), "servers"]).await?;
        // A server that is passed over would look like one that was never made.
        let read = |row: &RawValue| serde_json::from_str::<ServerSaid>(row.get()).map(Server::from);
        let servers = rows.iter().map(|row| read(row)).collect::<Result<_, _>>();
        servers.map_err(|_| unreadable("a server without a number"))
    }

    async fn server(&self, id: u64) -> Result<Option<Server>, VendorError> {
        Ok(self.find_server(id).await?.map(Server::from))
    }

    async fn credentials(&self, id: u64) -> Result<Option<Created>, VendorError> {
        Ok(self.find_server(id).await?.map(Created::from))
    }

    async fn create(&self, order: &CreateServer, until: Deadline) -> Result<Created, VendorError> {
        let cycle = self.cycle_slug(order.cycle).await?;
        let mut body = Map::from_iter([
            ("plan".to_owned(), json!(order.plan.as_str())),
            ("region".to_owned(), json!(order.region.as_str())),
            ("image".to_owned(), json!(order.image.as_str())),
            ("hostname".to_owned(), json!(order.hostname)),
            ("cycle".to_owned(), json!(cycle.as_str())),
            ("tags".to_owned(), json!(order.tags)),
        ]);
        if !order.ssh_keys.is_empty() {
            body.insert("ssh_keys".to_owned(), json!(order.ssh_keys));
        }
        if let Some(script) = &order.user_data {
            body.insert("user_data".to_owned(), json!(encoded(script)));
        }
        let secrets: Vec<&Secret> = order.user_data.iter().collect();
        let path = ["v1", "projects", &order.project.to_string(), "servers"];
        let answer = self.send(&path, &Value::Object(body), &secrets, until).await?;
        let said: Option<ServerSaid> = serde_json::from_slice(&answer.body).ok();
        said.map(Created::from)
            .ok_or_else(|| VendorError::unknown("cherry accepted it with an answer that cannot be read"))
    }

    async fn act(&self, id: u64, action: &ServerAction, until: Deadline) -> Result<(), VendorError> {
        let (body, secrets) = match action {
            ServerAction::Reboot => (json!({ "type": "reboot" }), vec![]),
            ServerAction::PowerOn => (json!({ "type": "power-on" }), vec![]),
            ServerAction::PowerOff => (json!({ "type": "power-off" }), vec![]),
            ServerAction::Rebuild { image, hostname, password, ssh_keys, user_data } => {
                let mut body = json!({
                    "type": "rebuild",
                    "image": image.as_str(),
                    "hostname": hostname,
                    "password": password.expose(),
                });
                if let Some(body) = body.as_object_mut() {
                    if !ssh_keys.is_empty() {
                        body.insert("ssh_keys".to_owned(), json!(ssh_keys));
                    }
                    if let Some(script) = user_data {
                        body.insert("user_data".to_owned(), json!(encoded(script)));
                    }
                }
                (body, [Some(password), user_data.as_ref()].into_iter().flatten().collect())
            }
            ServerAction::EnterRescueMode { password } => {
                (json!({ "type": "enter-rescue-mode", "password": password.expose() }), vec![password])
            }
            ServerAction::ExitRescueMode => (json!({ "type": "exit-rescue-mode" }), vec![]),
        };
        self.send(&["v1", "servers", &id.to_string(), "actions"], &body, &secrets, until).await?;
        Ok(())
    }

    async fn delete(&self, id: u64, until: Deadline) -> Result<(), VendorError> {
        let path = ["v1", "servers", &id.to_string()];
        let ask = Ask { method: Method::DELETE, ..Ask::get(&path) };
        match self.http.write(&ask, until).await {
            Err(error) if error.refusal() != Some(Refusal::NotFound) => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }
}
