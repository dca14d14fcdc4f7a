"""``xdpkit firewall``: rulesets in force on devices, changed without a lost packet, and undone where they are wrong.

The commands are declared here; what they do is in ``firewall_commands``, which is imported when one runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .offline import PipelineFile

firewall = typer.Typer(
    name="firewall",
    help="Keep a ruleset in force on a device, change it without losing a packet, and undo what was wrong.",
    epilog="Example: xdpkit firewall apply edge.py -i eth1 --confirm 60",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

importing = typer.Typer(
    name="import",
    help="Make a pipeline file of rules that nftables has.",
    epilog="Example: nft -j list ruleset | xdpkit firewall import nft - -o edge.py",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
firewall.add_typer(importing)

Name = Annotated[
    str, typer.Argument(metavar="[NAME]", help="The firewall, where there are several: its device.", show_default=False)
]
NameOption = Annotated[str, typer.Option("--name", metavar="NAME", help="The firewall.  [default: its device]")]
Device = Annotated[str, typer.Option("--interface", "-i", metavar="DEV", help="The network device to guard.")]
Inside = Annotated[str, typer.Option("--inside", metavar="DEV", help="Bridge: the device of the protected side.")]
Outside = Annotated[str, typer.Option("--outside", metavar="DEV", help="Bridge: the device of the other side.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Addresses = Annotated[list[str], typer.Argument(metavar="ADDRESS...", help="An address or a prefix, IPv4 or IPv6.")]
SetName = Annotated[str, typer.Option("--set", metavar="SET", help="The set that holds the bans.")]


@firewall.command()
def apply(
    rules: PipelineFile,
    device: Device = "",
    inside: Inside = "",
    outside: Outside = "",
    name: NameOption = "",
    mode: Annotated[str, typer.Option(help="auto, native, generic, tc_ingress, or want:NAME to prefer one.")] = "auto",
    shadow: Annotated[
        Path | None,
        typer.Option(
            metavar="RULES", exists=True, dir_okay=False, help="Try these rules as a shadow: they only count."
        ),
    ] = None,
    confirm: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="Roll back unless confirmed within SECONDS.")
    ] = 0,
    canary: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDR[:PORT]", help="With --confirm: roll back if it stops to answer.  May be repeated."),
    ] = None,
    max_drop: Annotated[
        str, typer.Option(metavar="PERCENT", help="With --confirm: roll back if more of the packets are dropped.")
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Apply rules that cut this SSH session.")] = False,
) -> None:
    """Put a ruleset in force.  It stays when the command ends, until `detach` or a restart of the machine.

    A ruleset that is in force already is exchanged: no packet meets no rules; members of sets, limits and counters go
    on.  With --confirm, the one of before comes back unless you press Enter, or `xdpkit firewall confirm` runs in
    another shell; also where the session ends, a canary stops to answer, or more packets are dropped than declared.

    With --inside and --outside the two devices become a bridge, and the rules judge what crosses it.

    Example: xdpkit firewall apply edge.py -i eth1 --confirm 60 --canary 192.0.2.1 --max-drop 50%

    Example: xdpkit firewall apply edge.py --inside eth1 --outside eth2
    """
    from .firewall_commands import Apply, Guarded, apply_rules

    apply_rules(
        Apply(
            rules,
            Guarded.of(device, inside, outside, name),
            mode,
            shadow,
            confirm,
            tuple(canary or ()),
            _share(max_drop),
            force,
        )
    )


def _share(text: str) -> float | None:
    if not text:
        return None
    try:
        share = float(text.removesuffix("%")) / 100
        if not 0 <= share <= 1:
            raise ValueError
    except ValueError:
        raise typer.BadParameter(f"--max-drop {text}: a number of percent, 0 to 100") from None
    return share


@firewall.command()
def run(
    rules: PipelineFile,
    device: Device = "",
    inside: Inside = "",
    outside: Outside = "",
    name: NameOption = "",
    mode: Annotated[str, typer.Option(help="auto, native, generic, tc_ingress, or want:NAME to prefer one.")] = "auto",
    metrics: Annotated[
        str, typer.Option(metavar="ADDR:PORT", help="Answer Prometheus there, as in 127.0.0.1:9464.")
    ] = "",
    log: Annotated[str, typer.Option(metavar="FILE", help="Where logged packets go, a line of JSON each.")] = "-",
) -> None:
    """Put a ruleset in force and stay: read feeds when they are due, write what rules log, answer Prometheus.

    SIGHUP reads the rules again; SIGTERM ends the command.  The rules stay in force, until `detach`: a restart or an
    upgrade of the command loses no packet.

    Example: xdpkit firewall run edge.py -i eth1 --metrics 127.0.0.1:9464
    """
    from .firewall_commands import Guarded
    from .firewall_run import run_service

    run_service(rules, Guarded.of(device, inside, outside, name), mode, metrics, log)


@firewall.command()
def why(
    packet: Annotated[
        str, typer.Argument(metavar="PACKET", help="The packet: SOURCE > DESTINATION PROTOCOL, or the frame in hex.")
    ],
    name: NameOption = "",
    rules: Annotated[
        Path | None,
        typer.Option(metavar="RULES", exists=True, dir_okay=False, help="Ask these rules, not those in force."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also the rules that did not match, and why not.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what a firewall would do to a packet, and why: rule by rule, with the members, limits and flows it has now.

    Addresses have a port behind a colon; IPv6 is in brackets then.  Words behind the protocol are flags of TCP or a
    message of ICMP; options are ttl=1, tos=8, vlan=5, bytes=100, src=MAC, dst=MAC and others.  Nothing is sent, and
    nothing is changed: no limit loses a token, no set gains a member.

    Example: xdpkit firewall why "198.51.100.7:4000 > 203.0.113.5:443 tcp syn"
    """
    from .firewall_why import explain_packet

    explain_packet(packet, name, rules, everything=everything, as_json=as_json)


@firewall.command()
def sync(
    name: Name = "",
    only: Annotated[str, typer.Option("--set", metavar="SET", help="Only the feed of this set.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Take a list also if it has few members.")] = False,
) -> None:
    """Look at the feeds of a firewall's sets now, and bring the sets to what they say.

    Exit status 1 where a feed is refused or cannot be had: then its last good copy stays in force.

    Example: xdpkit firewall sync --set drop
    """
    from .firewall_run import sync_feeds

    sync_feeds(name, only, force)


@firewall.command()
def metrics(
    name: Name = "",
    listen: Annotated[
        str, typer.Option(metavar="ADDR:PORT", help="Answer Prometheus there until Ctrl-C.  [default: print once]")
    ] = "",
    grafana: Annotated[bool, typer.Option("--grafana", help="Print a dashboard for Grafana to import.")] = False,
) -> None:
    """Print the metrics of every firewall for Prometheus, or serve them from a process of their own.

    Example: xdpkit firewall metrics --listen 127.0.0.1:9464

    Example: xdpkit firewall metrics --grafana > dashboard.json
    """
    if grafana:
        _print_file("grafana.json")
        return
    from .firewall_run import show_metrics

    show_metrics(name, listen)


@firewall.command()
def install(
    rules: PipelineFile,
    device: Device = "",
    inside: Inside = "",
    outside: Outside = "",
    name: NameOption = "",
    metrics: Annotated[str, typer.Option(metavar="ADDR:PORT", help="Answer Prometheus there.")] = "127.0.0.1:9464",
    folder: Annotated[Path, typer.Option(metavar="DIR", help="Where systemd looks for units.")] = Path(
        "/etc/systemd/system"
    ),
) -> None:
    """Write a systemd unit that runs the firewall from boot on, with as few privileges as it needs.

    Nothing is started: the command says how.

    Example: xdpkit firewall install /etc/xdpkit/edge.py -i eth1
    """
    from .firewall_commands import Guarded
    from .firewall_run import install_unit

    install_unit(rules, Guarded.of(device, inside, outside, name), metrics, folder)


@firewall.command()
def check(rules: PipelineFile, as_json: AsJson = False) -> None:
    """Say what is wrong with a ruleset before it acts: errors, rules that never match, and what it would cut.

    As root also whether the kernel takes it.  Exit status 1 if something is wrong.

    Example: xdpkit firewall check edge.py
    """
    from .firewall_commands import check_rules

    check_rules(rules, as_json)


@firewall.command()
def status(name: Name = "", as_json: AsJson = False) -> None:
    """Show what is in force: where, since when, and what every rule has counted.

    Example: xdpkit firewall status
    """
    from .firewall_commands import show_status

    show_status(name, as_json)


@firewall.command()
def top(
    name: Name = "",
    seconds: Annotated[float, typer.Option("--every", metavar="SECONDS", min=0.1, help="Between two looks.")] = 1,
) -> None:
    """Watch a firewall live: rates of every rule, verdicts, how full its sets are, and what was lost.

    Keys: s sorts, i shows the rules that have taken nothing, p pauses, q ends it.

    Example: xdpkit firewall top eth1
    """
    from .firewall_run import show_top

    show_top(name, seconds)


@firewall.command()
def flows(
    name: Name = "",
    host: Annotated[str, typer.Option("--host", metavar="ADDR", help="Of this address or prefix.")] = "",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="With this port; 0: any.")] = 0,
    protocol: Annotated[str, typer.Option("--protocol", metavar="P", help="tcp, udp, icmp, icmp6, or a number.")] = "",
    state: Annotated[str, typer.Option("--state", metavar="S", help='Of TCP: "syn sent", "established" ...')] = "",
    half_open: Annotated[bool, typer.Option("--half-open", help="Only those that were not answered yet.")] = False,
    sources: Annotated[bool, typer.Option("--sources", help="Who opened the most of them, the first ten.")] = False,
    flush: Annotated[bool, typer.Option("--flush", help="Forget them: their next packets are judged as new.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the connections that a firewall tracks (`pipe.track()`), or forget some.

    Example: xdpkit firewall flows --host 198.51.100.0/24 --protocol tcp

    Example: xdpkit firewall flows --host 198.51.100.7 --flush
    """
    from .firewall_flows import FlowFilter, show_flows

    chosen = FlowFilter(host, port, protocol, state, half_open)
    show_flows(name, chosen, sources=sources, flush=flush, as_json=as_json)


@firewall.command()
def unused(
    name: Name = "",
    days: Annotated[float, typer.Option("--days", min=0, help="Rules that took no packet for so many days.")] = 30,
    as_json: AsJson = False,
) -> None:
    """List rules that no packet has met for some time, as far as somebody looked: this command and `run` do.

    Example: xdpkit firewall unused --days 7
    """
    from .firewall_run import show_unused

    show_unused(name, days, as_json)


@firewall.command()
def confirm(name: Name = "") -> None:
    """Keep the ruleset that waits for it in another shell.

    Example: xdpkit firewall confirm
    """
    from .firewall_commands import confirm_waiting

    confirm_waiting(name)


@firewall.command()
def detach(name: Name = "") -> None:
    """Take a ruleset off its device: everything passes again.

    Example: xdpkit firewall detach eth1
    """
    from .firewall_commands import take_off

    take_off(name)


@firewall.command()
def ban(
    addresses: Addresses,
    timeout: Annotated[str, typer.Option("--timeout", metavar="T", help="As in 1h30m, or seconds; 0: for ever.")] = "0",
    name: NameOption = "",
    bans: SetName = "bans",
) -> None:
    """Drop what comes from these addresses, from the next packet on.

    The rules declare the set: `pipe.rule(pipe.bans(), DROP, name="banned")`.

    Example: xdpkit firewall ban 198.51.100.7 2001:db8::/48 --timeout 1h
    """
    from .firewall_commands import change_bans

    change_bans(name, bans, add=addresses, timeout=timeout)


@firewall.command()
def unban(addresses: Addresses, name: NameOption = "", bans: SetName = "bans") -> None:
    """Let these addresses in again.  One that is not banned is no error.

    Example: xdpkit firewall unban 198.51.100.7
    """
    from .firewall_commands import change_bans

    change_bans(name, bans, remove=addresses)


@firewall.command("bans")
def list_bans(name: NameOption = "", bans: SetName = "bans", as_json: AsJson = False) -> None:
    """List what is banned, with the time that is left, and whether a packet did it.

    Example: xdpkit firewall bans
    """
    from .firewall_commands import show_bans

    show_bans(name, bans, as_json)


@firewall.command("fail2ban")
def fail2ban_action() -> None:
    """Print a Fail2ban action that bans here.

    Example: xdpkit firewall fail2ban > /etc/fail2ban/action.d/xdpkit.conf
    """
    _print_file("fail2ban.conf")


def _print_file(name: str) -> None:
    """Print a file that comes with the package."""
    from importlib.resources import files

    print((files("xdpkit.firewall") / name).read_text(), end="")


@importing.command()
def nft(
    ruleset: Annotated[str, typer.Argument(metavar="FILE|-", help="What nft -j list ruleset printed.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="The pipeline file.  [default: standard output]"),
    ] = None,
    hook: Annotated[
        str, typer.Option(metavar="HOOK", help="input, forward, ingress or output.  [default: the first that is there]")
    ] = "",
    bridge: Annotated[
        str, typer.Option(metavar="OUTSIDE,INSIDE", help="The devices of a bridge, which tell where packets leave.")
    ] = "",
    name: Annotated[str, typer.Option(metavar="NAME", help="The name of the pipeline.  [default: the hook]")] = "",
    prove: Annotated[
        Path | None,
        typer.Option(metavar="CAPTURE", exists=True, dir_okay=False, help="Send these packets to nft, and compare."),
    ] = None,
) -> None:
    """Import a ruleset of nftables: a Python file with the original of each rule above it.

    Standard error says, line by line, what is not imported and why.  Exit status 0: everything is; 1: not everything.

    With --prove (as root) nft gets the same rules in a namespace and the packets of a capture, and the file judges them
    too: packets that the two judge differently are listed, and the exit status is 1.

    Example: nft -j list ruleset | xdpkit firewall import nft - -o edge.py
    """
    from .firewall_import import import_nft

    if hook not in ("", "input", "forward", "ingress", "output"):
        raise typer.BadParameter(f"--hook {hook}: input, forward, ingress or output")
    import_nft(ruleset, output, hook, bridge, name, prove)


@importing.command()
def ipset(
    sets: Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="What ipset save printed.")],
) -> None:
    """Print the declarations of the sets in FILE, for a pipeline beside it; their members are read from FILE itself.

    Exit status 0: every set has one; 1: standard error names those that have none, with the reason.

    Example: ipset save > sets.ipset; xdpkit firewall import ipset sets.ipset
    """
    from .firewall_import import import_ipset

    import_ipset(sets)
