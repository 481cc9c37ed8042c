"""Who may do what, reach what and know what: images, secrets, tokens, pod rights, networks, the tracking server."""

from __future__ import annotations

import configparser
import re
from collections.abc import Iterator

import yaml

from k8s.manifests import Object, Template, clusters, env, label, of_kind, problem, ray_containers, templates

Problems = Iterator[str]

NAMESPACE = "eegvision"
RAY_PORTS = {6379, 8265, 10001, "gcs-server", "dashboard", "client"}
_CLUSTER_WIDE = ("Namespace", "PersistentVolume", "ClusterRole", "ClusterRoleBinding", "ClusterQueue", "ResourceFlavor")
_SECRET_NAME = re.compile(r"TOKEN|PASSWORD|PASSWD|SECRET|ACCESS_KEY|CREDENTIAL", re.IGNORECASE)
_SECRET_TEXT = re.compile(r"(password|passwd|token|secret|access.?key)['\"]?\s*[=:]\s*['\"]?[^\s'\"$]", re.IGNORECASE)
_SECRET_LINE = re.compile(r"^\s*\w*(password|token|secret)\w*\s*[=:]\s*[^\s$\"']", re.IGNORECASE | re.MULTILINE)
_SECRET_ADDRESS = re.compile(r"://[^/\s:@]+:[^/\s@]+@")  # scheme://user:password@host
# Volumes that Pod Security `restricted` allows.
_VOLUMES = {
    *(
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
        "name",
    ),
}


def images_pinned(objects: list[Object]) -> Problems:
    """An image is named by a version or a digest; what runs tomorrow is what runs today."""
    for template in templates(objects):
        for path, container in template.containers:
            image = container.get("image", "")
            tag = re.fullmatch(r"[^@]*?(?::(?P<tag>[^:/@]+))?(?P<digest>@sha256:[0-9a-f]{64})?", image)
            if not tag or not (tag["digest"] or re.search(r"\d+\.\d+", tag["tag"] or "")):
                yield problem(
                    template.owner, f"{path}.image", image, "name a version or a digest, under `images:` for ours"
                )


def no_secret(objects: list[Object]) -> Problems:
    """Secrets are made by hand, from the example file; none is rendered."""
    for thing in of_kind(objects, "Secret"):
        keys = sorted({**thing.get("data", {}), **thing.get("stringData", {})})
        yield problem(thing, "data", keys, "remove it from the manifests; README says how a lab makes it")


def literal_secrets(objects: list[Object]) -> Problems:
    """No password or token stands in an environment, a command, a ConfigMap or a runtime environment."""
    for template in templates(objects):
        for path, container in template.containers:
            for name, value in env(container).items():
                if value and (_SECRET_NAME.search(name) or _tells(value)):
                    yield problem(template.owner, f"{path}.env.{name}", "...", "take it from a Secret (valueFrom)")
            for word in (*container.get("command", ()), *container.get("args", ())):
                if _tells(word):
                    yield problem(template.owner, f"{path}.command", "...", "take it from a Secret, by a variable")
    for job in of_kind(objects, "RayJob"):
        for field in ("entrypoint", "runtimeEnvYAML"):
            if _tells(job["spec"].get(field, "")):
                yield problem(job, f"spec.{field}", "...", "everybody who sees the job can read it; use a Secret")
    for thing in of_kind(objects, "ConfigMap"):
        for key, value in thing.get("data", {}).items():
            if _SECRET_LINE.search(value) or _SECRET_ADDRESS.search(value):
                yield problem(thing, f"data.{key}", "...", "put it into a Secret")


def _tells(text: str) -> bool:
    return bool(_SECRET_TEXT.search(text) or _SECRET_ADDRESS.search(text))


def runtime_installs(objects: list[Object]) -> Problems:
    """Nothing is installed or fetched when a job starts; it all is in the image."""
    for job in of_kind(objects, "RayJob"):
        text = job["spec"].get("runtimeEnvYAML", "")
        wanted = (
            {"pip", "uv", "conda", "py_modules", "working_dir"} & (yaml.safe_load(text) or {}).keys() if text else ()
        )
        for key in sorted(wanted):
            yield problem(job, f"spec.runtimeEnvYAML.{key}", text, "build it into the image: hashes are checked there")


def exposure(objects: list[Object]) -> Problems:
    """Ray's ports are reached by `kubectl port-forward` alone: whoever reaches them can run code."""
    for thing in of_kind(objects, "Service"):
        kind = thing["spec"].get("type", "ClusterIP")
        if kind != "ClusterIP" or thing["spec"].get("externalIPs"):
            yield problem(thing, "spec.type", kind, "use ClusterIP and `kubectl port-forward`")
    for thing in of_kind(objects, "Ingress"):
        for rule in thing["spec"].get("rules", []):
            for path in rule.get("http", {}).get("paths", []):
                service = path["backend"]["service"]
                if service["name"].endswith("-head-svc") or set(service["port"].values()) & RAY_PORTS:
                    yield problem(thing, "spec.rules", service, "no way from outside to Ray; remove it")
    for thing in objects:
        if thing["kind"] in ("HTTPRoute", "TCPRoute", "GRPCRoute", "Route", "VirtualService"):
            yield problem(thing, "kind", thing["kind"], "no way from outside but the Ingress of MLflow; remove it")
    for cluster in clusters(objects):
        head, path = cluster.spec.get("headGroupSpec", {}), f"{cluster.path}.headGroupSpec"
        service = head.get("headService", {}).get("spec", {}).get("type", "ClusterIP")
        kind = head.get("serviceType", service)
        if kind != "ClusterIP" or service != "ClusterIP":
            yield problem(
                cluster.owner, f"{path}.serviceType", (kind, service), "use ClusterIP and `kubectl port-forward`"
            )
        if head.get("enableIngress"):
            yield problem(cluster.owner, f"{path}.enableIngress", True, "remove it; use `kubectl port-forward`")


def pod_security(objects: list[Object]) -> Problems:
    """Every container keeps to Pod Security `restricted`, the submitter's and the autoscaler's as well."""
    for template in templates(objects):
        yield from _pod_security(template)
    for cluster in clusters(objects):
        if cluster.spec.get("enableInTreeAutoscaling"):
            context = cluster.spec.get("autoscalerOptions", {}).get("securityContext", {})
            field = f"{cluster.path}.autoscalerOptions.securityContext"
            yield from _container_security(cluster.owner, field, context)
    for job in of_kind(objects, "RayJob"):
        if (
            job["spec"].get("submissionMode", "K8sJobMode") == "K8sJobMode"
            and "submitterPodTemplate" not in job["spec"]
        ):
            yield problem(
                job, "spec.submitterPodTemplate", None, "the operator's own is refused under `restricted`; give one"
            )


def _pod_security(template: Template) -> Problems:
    spec = template.spec
    context = spec.get("securityContext", {})
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield problem(template.owner, f"{template.path}.{field}", True, "remove it")
    if context.get("runAsNonRoot") is not True:
        given = context.get("runAsNonRoot")
        yield problem(template.owner, f"{template.path}.securityContext.runAsNonRoot", given, "set true")
    if not context.get("runAsUser"):
        given = context.get("runAsUser")
        yield problem(
            template.owner, f"{template.path}.securityContext.runAsUser", given, "name the image's user, not 0"
        )
    if context.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        given = context.get("seccompProfile")
        yield problem(
            template.owner, f"{template.path}.securityContext.seccompProfile", given, "set type: RuntimeDefault"
        )
    for volume in spec.get("volumes", []):
        if bad := volume.keys() - _VOLUMES:
            yield problem(template.owner, f"{template.path}.volumes.{volume['name']}", sorted(bad), "use a claim")
    for path, container in template.containers:
        own = container.get("securityContext", {})
        yield from _container_security(template.owner, f"{path}.securityContext", own)
        for port in container.get("ports", []):
            if port.get("hostPort"):
                yield problem(template.owner, f"{path}.ports", port, "remove hostPort")


def _container_security(owner: Object, path: str, context: Object) -> Problems:
    if context.get("allowPrivilegeEscalation") is not False:
        given = context.get("allowPrivilegeEscalation")
        yield problem(owner, f"{path}.allowPrivilegeEscalation", given, "set false")
    if "ALL" not in context.get("capabilities", {}).get("drop", []):
        yield problem(owner, f"{path}.capabilities", context.get("capabilities"), "set drop: [ALL]")
    if set(context.get("capabilities", {}).get("add", [])) - {"NET_BIND_SERVICE"}:
        yield problem(owner, f"{path}.capabilities.add", context["capabilities"]["add"], "remove it")
    if context.get("privileged") or context.get("runAsUser") == 0 or context.get("runAsNonRoot") is False:
        yield problem(owner, path, context, "run without privileges, and not as root")


def tokens(objects: list[Object]) -> Problems:
    """Ray asks for its token everywhere; unset, its default depends on version, entry point and a file in HOME."""
    for cluster in clusters(objects):
        options = cluster.spec.get("authOptions", {})
        if options.get("mode") != "token" or not options.get("secretName"):
            yield problem(
                cluster.owner, f"{cluster.path}.authOptions", options, "set mode: token and secretName: ray-token"
            )
        for one in cluster.spec.get("autoscalerOptions", {}).get("env", []):
            if one["name"].startswith("RAY_AUTH_"):
                field = f"{cluster.path}.autoscalerOptions.env.{one['name']}"
                yield problem(cluster.owner, field, one.get("value"), "remove it: the operator has set it by then")
    for template, path, container in ray_containers(objects, "head", "worker", "submitter"):
        if (mode := env(container).get("RAY_AUTH_MODE")) != "token":
            yield problem(template.owner, f"{path}.env.RAY_AUTH_MODE", mode, "set token")


def api_access(objects: list[Object]) -> Problems:
    """No pod gets a token of the Kubernetes API but a head with an autoscaler, under an account of its own."""
    scaled = {label(one.owner) for one in clusters(objects) if one.spec.get("enableInTreeAutoscaling")}
    for template in templates(objects):
        if template.role == "head" and label(template.owner) in scaled:
            account = template.spec.get("serviceAccountName")
            others = {one.spec.get("serviceAccountName") for one in templates(objects) if one.role != "head"}
            if account in others:
                field = f"{template.path}.serviceAccountName"
                yield problem(template.owner, field, account, "give the head an account that nothing else has")
        elif template.spec.get("automountServiceAccountToken") is not False:
            given = template.spec.get("automountServiceAccountToken")
            yield problem(template.owner, f"{template.path}.automountServiceAccountToken", given, "set false")
    for thing in of_kind(objects, "ServiceAccount"):
        if thing.get("automountServiceAccountToken") is not False:
            given = thing.get("automountServiceAccountToken")
            yield problem(thing, "automountServiceAccountToken", given, "set false; a pod that needs it asks for it")
    for thing in of_kind(objects, "Role", "ClusterRole"):
        for rule in thing["rules"]:
            if "*" in (*rule["verbs"], *rule["resources"]) or "secrets" in rule["resources"]:
                yield problem(thing, "rules", rule, "name what is needed; Secrets are not")


def namespaces(objects: list[Object]) -> Problems:
    """Everything lies in one namespace, and that namespace enforces `restricted`."""
    for thing in objects:
        if thing["kind"] not in _CLUSTER_WIDE and thing["metadata"].get("namespace") != NAMESPACE:
            given = thing["metadata"].get("namespace")
            yield problem(
                thing, "metadata.namespace", given, f"write {NAMESPACE}; a component's objects need it themselves"
            )
    for level in ("enforce", "audit", "warn"):
        for thing in of_kind(objects, "Namespace"):
            given = thing["metadata"].get("labels", {}).get(f"pod-security.kubernetes.io/{level}")
            if given != "restricted":
                yield problem(thing, f"metadata.labels.pod-security.kubernetes.io/{level}", given, "set restricted")


def network(objects: list[Object]) -> Problems:
    """Nothing is reached that was not meant to be: a default of none, and named sources for every pod and port."""
    policies = of_kind(objects, "NetworkPolicy")
    if not any(_is_default_deny(one) for one in policies):
        yield f"Namespace/{NAMESPACE}: no NetworkPolicy denies ingress to all pods; add one with podSelector: {{}}"
    for policy in policies:
        for rule in policy["spec"].get("ingress", []):
            if not rule.get("from") or not all(_is_named(source) for source in rule["from"]):
                yield problem(
                    policy, "spec.ingress", rule, "name the pods, or by kubernetes.io/metadata.name the namespace"
                )
    for template in templates(objects):
        own = [one for one in policies if _selects(one, template.labels) and one["spec"].get("ingress")]
        listens = any(container.get("ports") for _, container in template.containers)
        if listens and not own:
            yield problem(
                template.owner, template.path, template.labels, "no NetworkPolicy says who may reach these pods"
            )
        for policy in own:
            yield from _ray_sources(policy, template)


def _ray_sources(policy: Object, template: Template) -> Problems:
    """All ports of Ray's pods are for Ray's pods; others get single ports, of which no namespace gets 6379 or 10001."""
    if template.labels.get("ray.io/is-ray-node") != "yes":
        return
    ray = {"podSelector": {"matchLabels": {"ray.io/is-ray-node": "yes"}}}
    for rule in policy["spec"]["ingress"]:
        ports = {one.get("port") for one in rule.get("ports", [])}
        if rule.get("from") != [ray] and (not ports or ports & {6379, 10001}):
            yield problem(
                policy, "spec.ingress", rule, f"leave only single ports, none of 6379 and 10001, to {rule['from']}"
            )


def _is_named(source: Object) -> bool:
    pods = source.get("podSelector", {}).get("matchLabels")
    space = source.get("namespaceSelector", {}).get("matchLabels", {}).get("kubernetes.io/metadata.name")
    return bool(space) if "namespaceSelector" in source else bool(pods)


def _is_default_deny(policy: Object) -> bool:
    spec = policy["spec"]
    return spec.get("podSelector") == {} and "Ingress" in spec.get("policyTypes", []) and not spec.get("ingress")


def _selects(policy: Object, labels: Object) -> bool:
    wanted = policy["spec"].get("podSelector", {}).get("matchLabels", {})
    return bool(wanted) and wanted.items() <= labels.items()


def database(objects: list[Object]) -> Problems:
    """Only MLflow reaches PostgreSQL, as a user that owns two databases and no more; PostgreSQL itself calls nobody."""
    mlflow = [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "mlflow"}}}]
    for template in templates(objects):
        if template.labels.get("app.kubernetes.io/name") == "postgres":
            for policy in of_kind(objects, "NetworkPolicy"):
                if not _selects(policy, template.labels):
                    continue
                if any(rule.get("from") != mlflow for rule in policy["spec"].get("ingress", [])):
                    yield problem(policy, "spec.ingress", policy["spec"]["ingress"], "let only MLflow's pods in")
                if "Egress" not in policy["spec"]["policyTypes"] or policy["spec"].get("egress"):
                    yield problem(
                        policy, "spec.egress", policy["spec"].get("egress"), "a database calls nobody: egress: []"
                    )
        for path, container in template.containers:
            address = env(container).get("MLFLOW_BACKEND_STORE_URI") or ""
            if address.startswith("postgresql://") and re.match(r"postgresql://(postgres|root|admin)?[:@]", address):
                field = f"{path}.env.MLFLOW_BACKEND_STORE_URI"
                yield problem(template.owner, field, address, "use the role `mlflow`, which is no superuser")


def disruption(objects: list[Object]) -> Problems:
    """A drain of a node never takes a head, and always may take workers."""
    budgets = of_kind(objects, "PodDisruptionBudget")
    head = {"ray.io/node-type": "head"}
    guarding = [one for one in budgets if one["spec"].get("selector", {}).get("matchLabels") == head]
    if not any(one["spec"].get("maxUnavailable") == 0 for one in guarding):
        yield "PodDisruptionBudget/ray-head: none with maxUnavailable: 0 selects ray.io/node-type: head; add it"
    for budget in budgets:
        selected = budget["spec"].get("selector", {}).get("matchLabels", {})
        if selected.items() <= {"ray.io/is-ray-node": "yes", "ray.io/node-type": "worker"}.items():
            yield problem(budget, "spec.selector", selected, "it holds workers back; select the head alone")


def tracking_server(objects: list[Object]) -> Problems:
    """MLflow asks for a login, answers to its names only, and is never two of a kind."""
    for thing in of_kind(objects, "Deployment"):
        if thing["metadata"]["name"] != "mlflow":
            continue
        spec, pod = thing["spec"], thing["spec"]["template"]["spec"]
        container, path = pod["containers"][0], "spec.template.spec.containers.0"
        given, words = env(container), [*container.get("command", []), *container.get("args", [])]
        if "--app-name=basic-auth" not in words or not given.get("MLFLOW_AUTH_CONFIG_PATH"):
            yield problem(
                thing, f"{path}.command", words, "serve with --app-name=basic-auth and MLFLOW_AUTH_CONFIG_PATH"
            )
        hosts = (given.get("MLFLOW_SERVER_ALLOWED_HOSTS") or "").split(",")
        if "*" in hosts or not {"mlflow", "mlflow:5000"} <= set(hosts):
            field = f"{path}.env.MLFLOW_SERVER_ALLOWED_HOSTS"
            yield problem(thing, field, hosts, "name mlflow and mlflow:5000, or every client gets 403; and no *")
        if (given.get("MLFLOW_SERVER_CORS_ALLOWED_ORIGINS") or "*") == "*":
            field = f"{path}.env.MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"
            yield problem(thing, field, given.get("MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"), "name the page's own address")
        if spec.get("replicas") != 1 or spec.get("strategy", {}).get("type") != "Recreate":
            both = (spec.get("replicas"), spec.get("strategy"))
            yield problem(
                thing, "spec.replicas", both, "one replica, strategy Recreate: its database is upgraded at start"
            )
        if not any("upgrade" in one.get("command", []) for one in pod.get("initContainers", [])):
            yield problem(thing, "spec.template.spec.initContainers", None, "run `mlflow db upgrade` before the server")
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if container.get(probe, {}).get("httpGet", {}).get("path") != "/health":
                yield problem(thing, f"{path}.{probe}", container.get(probe), "ask /health, which needs no login")
    for thing in of_kind(objects, "ConfigMap"):
        if text := thing.get("data", {}).get("basic_auth.ini"):
            yield from _login(thing, text)


def _login(thing: Object, text: str) -> Problems:
    parser = configparser.ConfigParser()
    parser.read_string(text)
    settings = parser["mlflow"]
    if settings.get("default_permission") not in ("READ", "NO_PERMISSIONS"):
        given = settings.get("default_permission")
        yield problem(thing, "data.basic_auth.ini: default_permission", given, "READ or NO_PERMISSIONS, on purpose")
    if not settings.get("database_uri", "").startswith("postgresql://"):
        given = settings.get("database_uri")
        yield problem(thing, "data.basic_auth.ini: database_uri", given, "a file is lost with its pod; use PostgreSQL")


def server_secrets(objects: list[Object]) -> Problems:
    """The keys of the bucket and the admin's password are for the server; Ray's pods have an account of their own."""
    for template in templates(objects):
        if not template.role:
            continue
        for path, container in template.containers:
            named = {one["secretRef"]["name"] for one in container.get("envFrom", []) if "secretRef" in one}
            references = (one.get("valueFrom", {}).get("secretKeyRef", {}) for one in container.get("env", []))
            named |= {one["name"] for one in references if one}
            for name in sorted(named & {"mlflow-server", "postgres"}):
                yield problem(template.owner, f"{path}.env", f"Secret/{name}", "it is the server's; use mlflow-client")


SAFETY = (
    *(
        images_pinned,
        no_secret,
        literal_secrets,
        runtime_installs,
        exposure,
        pod_security,
        tokens,
        api_access,
        namespaces,
    ),
    *(network, database, disruption, tracking_server, server_secrets),
)
