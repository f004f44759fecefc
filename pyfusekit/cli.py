"""The command line: parse, call a service, print.

Only sys, os and click are imported here; every command imports what it needs when it runs, so that --help is quick and list
and umount never load asyncio. A person's mistake ends as two lines on stderr, the cause and the remedy; a bug ends as a
traceback and exit code 70.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from .service.ahead import Ahead
    from .service.exits import Failure
    from .service.options import Spec
    from .service.registry import Entry

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
_MAX_WAIT_S = 1_000_000.0


def _seconds(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Return a time to wait, written in a person's words, in seconds."""
    from .service.values import parse_duration

    if value is None:
        return None
    try:
        return min(parse_duration(value), _MAX_WAIT_S)
    except ValueError as exc:
        raise click.BadParameter(str(exc), ctx, param) from exc


def main(arguments: Sequence[str] | None = None, ahead: Ahead | None = None) -> int:
    """Run the command line and return its exit code; *ahead* is a mount's server that is already warming up."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        return _run(words, ahead)
    finally:
        if ahead is not None:
            ahead.cancel()


def _run(words: list[str], ahead: Ahead | None) -> int:
    try:
        result = root.main(words, prog_name="pyfusekit", standalone_mode=False, obj=ahead)
        sys.stdout.flush()
    except click.ClickException as exc:
        return _complain_usage(exc)
    except (KeyboardInterrupt, click.Abort):
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (| head): nothing is left to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as exc:
        return _complain(exc)
    return result if isinstance(result, int) else 0


def _complain(exc: Exception) -> int:
    """Print a failure, or a bug's traceback, and return the exit code."""
    from .service.exits import BUG, failure_of

    failure = failure_of(exc)
    if failure is None:
        import traceback

        traceback.print_exc()
        _print_error(f"bug: {type(exc).__name__}: {exc}", "please report it with the lines above")
        return BUG
    _print_failure(failure)
    return failure.code


def _print_failure(failure: Failure) -> None:
    _print_error(failure.cause, failure.remedy)


def _print_error(cause: str, remedy: str) -> None:
    """Print the two lines of an error; what names in them hold shall not reach the terminal as it is."""
    from .service.words import printable

    text = f"pyfusekit: {cause}\n" + (f"  {remedy}\n" if remedy else "")
    click.echo("\n".join(map(printable, text.split("\n"))), err=True, nl=False)


def _complain_usage(exc: click.ClickException) -> int:
    """Print click's complaint in our two lines."""
    context = exc.ctx if isinstance(exc, click.UsageError) else None
    command = context.command_path if context is not None else "pyfusekit"
    if isinstance(exc, click.NoSuchOption):
        cause = f"{exc.option_name}: no such option" + _or_rather(exc.possibilities)
        if context is not None and isinstance(context.command, MountGroup):
            command = "an option of one filesystem stands behind its name; pyfusekit mount"
    else:
        cause = exc.format_message().rstrip(".")
        cause = cause[:1].lower() + cause[1:]
    _print_error(cause, f"{command} --help")
    return exc.exit_code


def _or_rather(possibilities: Sequence[str] | None) -> str:
    return f"; did you mean {possibilities[0]}?" if possibilities else ""


class Suggesting(click.Group):
    """A group whose unknown command is answered with the closest known one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of their declaration."""
        return list(self.commands)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command *args* begin with."""
        if self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            from .service.exits import USAGE, Failure
            from .service.words import did_you_mean

            names = self.list_commands(ctx)
            cause = f"{args[0]}: no such command{did_you_mean(args[0], names)}"
            raise Failure(cause, f"there are: {', '.join(names)} ({ctx.command_path} --help)", code=USAGE)
        return super().resolve_command(ctx, args)


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from pyfusekit import __version__

        python = ".".join(map(str, sys.version_info[:3]))
        click.echo(f"pyfusekit {__version__} (Python {python}, Linux {os.uname().release})")
        ctx.exit()


@click.group(cls=Suggesting, context_settings=_CONTEXT, no_args_is_help=False)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the version.")
def root() -> None:
    """Mount filesystems written in Python: memory, S3 buckets, and others."""


class MountGroup(Suggesting):
    """``mount``: its commands are the filesystems, listed from a table and loaded only when named, or meant by a URL."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the bundled filesystems."""
        from .service.registry import BUNDLED

        return [entry.name for entry in BUNDLED]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of one filesystem, which loads its class."""
        from .service import registry

        if cmd_name.startswith("-"):
            return None
        entry = registry.find(cmd_name)
        return FilesystemCommand(entry)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the filesystem that *args* begin with, named or meant by a URL, which is then its source."""
        from .service import registry

        if args[0].startswith("-") or not registry.is_url(args[0]):
            return super().resolve_command(ctx, args)
        from .service.values import redacted_source
        from .service.words import printable

        entry = registry.of_url(args[0])
        return printable(redacted_source(args[0])), FilesystemCommand(entry, args[0]), args[1:]

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write both forms."""
        super().format_usage(ctx, formatter)
        formatter.write_usage(ctx.command_path, "[OPTIONS] URL MOUNTPOINT [OPTIONS]", prefix="       ")

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the options that may stand before the filesystem: those that every mount has."""
        from .service.options import COMMON

        return [*_start_options(), *map(_click_option, COMMON), *super().get_params(ctx)]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the filesystems, then the options of every mount."""
        from .service.options import COMMON
        from .service.registry import BUNDLED, plugins, url_schemes

        others, complaints = plugins()
        with formatter.section("Filesystems (pyfusekit mount FS --help shows the options of one)"):
            formatter.write_dl([(entry.name, entry.summary) for entry in (*BUNDLED, *others)])
        with formatter.section("URLs"):
            schemes = ", ".join(f"{scheme}://" for scheme in url_schemes())
            formatter.write_text(f"What a URL begins with names its filesystem: {schemes}, and NAME:// of any other one.")
        for complaint in complaints:
            click.echo(f"pyfusekit: {complaint}", err=True)
        _write_options(ctx, formatter, COMMON, super().get_params(ctx))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete names of filesystems from the table, and options."""
        from click.shell_completion import CompletionItem

        from .service.registry import BUNDLED

        names = [CompletionItem(entry.name, help=entry.summary) for entry in BUNDLED if entry.name.startswith(incomplete)]
        return names + click.Command.shell_complete(self, ctx, incomplete)


class FilesystemCommand(click.Command):
    """``mount FS``, or ``mount URL``: the options are those the filesystem declares and those of every mount."""

    def __init__(self, entry: Entry, url: str | None = None) -> None:
        from .service import options, registry

        self.entry = entry
        self.url = url
        """The source, when it stands in place of the filesystem's name."""
        self.filesystem = registry.load(entry)
        self.declared = options.all_specs(self.filesystem.Options)
        use = self.filesystem.source_use
        words = {"required": "SOURCE MOUNTPOINT", "none": "MOUNTPOINT"}.get(use, "[SOURCE] MOUNTPOINT")
        if url is not None:
            words = "MOUNTPOINT"
        super().__init__(
            entry.name,
            context_settings=_CONTEXT,
            callback=self.run,
            help=self.filesystem.summary or entry.summary,
            params=[
                *map(_click_option, self.declared),
                *_start_options(),
                click.Argument(["operands"], nargs=-1, metavar=words),
            ],
        )

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options by their groups."""
        _write_options(ctx, formatter, self.declared, super().get_params(ctx))
        with formatter.section("Other ways to say it"):
            prefix = f"PYFUSEKIT_{self.entry.name.upper().replace('-', '_')}_"
            formatter.write_text(
                f"Each option can also be a word of -o (-o ro,size=1G) or an environment variable ({prefix}OPTION). "
                "The command line is stronger than -o, and -o is stronger than the environment."
            )

    def run(self, operands: tuple[str, ...], **given: Any) -> int:
        """Mount."""
        before = click.get_current_context().parent
        early = before.params if before is not None else {}
        words = (*early.get("words", ()), *given.pop("words"))
        flags = {**early, **{name: value for name, value in given.items() if value is not None}}
        if flags.get("ro") is False and any(spec.name == "rw" for spec in self.declared):
            # --rw stood before the filesystem's name, where it is the opposite of --ro.
            flags.setdefault("rw", True)
        foreground = bool(flags.pop("foreground", False))
        timeout = flags.pop("timeout", None)
        return self._mount(self._operands(operands), flags, words, foreground, 30.0 if timeout is None else timeout)

    def _operands(self, operands: tuple[str, ...]) -> tuple[str | None, str]:
        """Return source and mountpoint; "-" is no source."""
        from .service.exits import USAGE, Failure
        from .service.registry import is_url
        from .service.values import redacted_source

        remedy = self.get_usage(click.get_current_context()).removeprefix("Usage: ")
        use = self.filesystem.source_use
        if self.url is not None:
            operands = (self.url, *operands)
        if len(operands) == 1 and is_url(operands[0]):
            raise Failure("the mountpoint is missing", remedy, code=USAGE)
        if not operands or len(operands) > 2:
            what = "the mountpoint is missing" if not operands else f"{operands[2]}: one word too many"
            raise Failure(what, remedy, code=USAGE)
        source = operands[0] if len(operands) == 2 and operands[0] not in ("-", "") else None
        if source is None and use == "required":
            raise Failure(f"{self.entry.name} needs a source", remedy, code=USAGE)
        if source is not None and use == "none":
            cause = f"{self.entry.name} takes no source, so {redacted_source(source)} means nothing"
            raise Failure(cause, remedy, code=USAGE)
        return source, operands[-1]

    def _mount(
        self,
        operands: tuple[str | None, str],
        flags: dict[str, Any],
        words: Sequence[str],
        foreground: bool,
        timeout: float,
    ) -> int:
        import time

        from pyfusekit import __version__

        from .service import launch, options
        from .service.job import Job, note_words

        began = time.monotonic()
        values = options.resolve(self.declared, self.entry.name, flags, words, os.environ)
        source, mountpoint = operands
        common = options.build(options.CommonOptions, self.entry.name, values)
        job = Job(
            fs=self.entry.name,
            filesystem=self.filesystem,
            source=source,
            mountpoint=mountpoint,
            options=options.build(self.filesystem.Options, self.entry.name, values),
            common=common,
            described=options.described(self.declared, values),
            version=__version__,
        )
        job.mountpoint = launch.checked_mountpoint(mountpoint, nonempty=common.nonempty)
        if foreground:
            from .service import daemon

            return daemon.foreground(job, timeout)
        try:
            ready = launch.background(job, timeout, click.get_current_context().obj)
        except launch.Signalled as exc:
            _print_error(f"stopped by {exc.name}; nothing is mounted", "")
            return exc.exit_code
        click.echo(job.mounted_words(ready.read_only, time.monotonic() - began))
        for note in ready.notes:
            click.echo(note_words(note), err=True)
        return 0


def _click_option(spec: Spec) -> click.Option:
    """Return a declared option as click's; its value stays raw text until all origins are weighed."""
    if spec.is_flag:
        names = [f"--{spec.kebab}/--{spec.opposite}"]
        return click.Option([*names, spec.name], default=None, help=_help_of(spec))
    if spec.is_secret:
        return click.Option([f"--{spec.kebab}-file", spec.name], metavar="PATH", help=_help_of(spec))
    return click.Option([f"--{spec.kebab}", spec.name], metavar=spec.kind.metavar, help=_help_of(spec))


def _help_of(spec: Spec) -> str:
    notes = []
    if spec.env:
        notes.append(f"also ${spec.env}")
    default = "" if spec.is_secret else spec.show(spec.default)
    if spec.is_flag:
        default = spec.kebab if spec.default else ""
    if default:
        notes.append(f"default: {default}")
    return spec.help + (f"  [{'; '.join(notes)}]" if notes else "")


def _start_options() -> list[click.Parameter]:
    """Return the options that are about the command, not about the mount: they have no -o word."""
    return [
        click.Option(["-o", "words"], multiple=True, metavar="OPTION[,...]", help="Options as in fstab; may be repeated."),
        click.Option(
            ["-f", "--foreground"], is_flag=True, default=None, help="Stay in the foreground; the log goes to stderr."
        ),
        click.Option(["--timeout"], callback=_seconds, metavar="TIME", help="How long starting may take.  [default: 30s]"),
    ]


def _write_options(
    ctx: click.Context, formatter: click.HelpFormatter, declared: Sequence[Spec], params: Sequence[click.Parameter]
) -> None:
    """Write help records in sections: the declared groups in their order, then what belongs to the command itself."""
    sections: dict[str, list[tuple[str, str]]] = {}
    for spec in declared:
        record = _click_option(spec).get_help_record(ctx)
        if record is not None:
            sections.setdefault(f"{spec.group} options" if spec.group else "Options", []).append(record)
    names = {spec.name for spec in declared}
    names |= {"words", "foreground", "timeout", "operands"}
    own = [*_start_options(), *(param for param in params if param.name not in names)]
    records = [record for param in own if (record := param.get_help_record(ctx)) is not None]
    sections.setdefault("Start", []).extend(records)
    for heading, rows in sections.items():
        with formatter.section(heading):
            formatter.write_dl(rows)


@root.group(
    "mount",
    cls=MountGroup,
    context_settings=_CONTEXT,
    no_args_is_help=False,
    invoke_without_command=True,
    subcommand_metavar="FS [SOURCE] MOUNTPOINT [OPTIONS]",
)
@click.pass_context
def mount(ctx: click.Context, /, **_given: Any) -> None:
    """Mount a filesystem, and return when it can be used."""
    if ctx.invoked_subcommand is None:
        ctx.fail("The filesystem or URL is missing.")


@root.command("umount", context_settings=_CONTEXT)
@click.argument("targets", nargs=-1, required=True, metavar="MOUNTPOINT...")
@click.option("-l", "--lazy", is_flag=True, help="Detach now; the server ends when the last user is gone.")
@click.option("--no-wait", is_flag=True, help="Leave what is not written back yet to the next mount.")
@click.option(
    "--timeout",
    callback=_seconds,
    metavar="TIME",
    help="How long to wait in all.  [default: 30s, and for data as long as it is being written]",
)
def umount(targets: tuple[str, ...], lazy: bool, no_wait: bool, timeout: float | None) -> int:
    """Unmount once all data is written back; clean up dead mounts.

    Returns when the server has ended.
    """
    from .service import unmounting
    from .service.exits import Failure

    code = 0
    for target in targets:
        try:
            meter = unmounting.Meter(sys.stderr)
            click.echo(unmounting.unmount(target, lazy=lazy, seconds=timeout, wait=not no_wait, meter=meter))
        except Failure as failure:
            _print_failure(failure)
            code = code or failure.code
    return code


@root.command("list", context_settings=_CONTEXT)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """List what is mounted, and how it is, without touching any mount."""
    from .service import mounts

    found = mounts.survey()
    if as_json:
        import json

        click.echo(json.dumps(mounts.as_json(found), indent=2))
    elif found:
        click.echo(mounts.as_table(found))
    else:
        click.echo("Nothing is mounted.")


@root.command("errors", context_settings=_CONTEXT)
@click.argument("mountpoint", required=False, metavar="[MOUNTPOINT]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def errors(mountpoint: str | None, as_json: bool) -> int:
    """Show what went wrong in mounts, and why, the newest last."""
    from .service import errors as service

    rows, failures = service.collect(mountpoint)
    if as_json:
        import json

        click.echo(json.dumps(rows, indent=2))
    else:
        click.echo(service.as_text(rows) if rows else "No errors.")
    for failure in failures:
        _print_failure(failure)
    return failures[0].code if failures else 0


@root.command("refresh", context_settings=_CONTEXT)
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
def refresh(paths: tuple[str, ...]) -> int:
    """Have a mount look again at what is behind it.

    Nothing that its server knows of a PATH and of what is below it is believed any more.
    """
    from .service import refresh as service
    from .service.exits import Failure

    code = 0
    for path in paths:
        try:
            click.echo(service.refresh(path))
        except Failure as failure:
            _print_failure(failure)
            code = code or failure.code
    return code


@root.group("cache", cls=Suggesting, context_settings=_CONTEXT, no_args_is_help=False)
def cache() -> None:
    """Show, clear or fill the disk caches of mounts."""


@cache.command("show", context_settings=_CONTEXT)
@click.argument("directory", required=False, metavar="[DIR]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def cache_show(directory: str | None, as_json: bool) -> None:
    """Show what is in the disk caches, and who uses them.

    DIR is what mounts were given as --cache-dir; without it, all caches that are known are shown.
    """
    from .service import caches

    rows = caches.show(directory)
    if as_json:
        import json

        click.echo(json.dumps(rows, indent=2))
    else:
        click.echo(caches.as_text(rows))


@cache.command("clear", context_settings=_CONTEXT)
@click.argument("source", required=False, metavar="[SOURCE]")
@click.option("--all", "everything", is_flag=True, help="Clear everything that is not in use.")
@click.option("--older-than", callback=_seconds, metavar="TIME", help="Clear what was not used for so long.")
@click.option("--cache-dir", "directory", metavar="DIR", help="Of the caches in DIR only.")
def cache_clear(source: str | None, everything: bool, older_than: float | None, directory: str | None) -> None:
    """Remove from the disk caches what no mount has open.

    SOURCE is one that cache show lists.
    """
    from .service import caches

    click.echo(caches.clear(source, directory, everything=everything, older_than=older_than))


@cache.command("warm", context_settings=_CONTEXT)
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
def cache_warm(paths: tuple[str, ...]) -> int:
    """Read files and whole directories into the disk cache.

    It is the cache of the mount that a PATH lies in.
    """
    from .service import warming
    from .service.exits import Failure

    code = 0
    targets = []
    for path in paths:
        try:
            targets.append(warming.target(path))
        except Failure as failure:
            _print_failure(failure)
            code = code or failure.code
    if not targets:
        return code
    work = warming.Warming(targets, warming.Meter(sys.stderr))
    try:
        click.echo(work.run())
    except KeyboardInterrupt:
        click.echo(f"Stopped; read {work.words()}", err=True)
        raise
    for note in work.notes():
        click.echo(f"pyfusekit: note: {note}", err=True)
    for unread in work.failures:
        _print_failure(unread)
    if work.failed > len(work.failures):
        click.echo(f"pyfusekit: {work.failed - len(work.failures)} more could not be read", err=True)
    return code or (work.failures[0].code if work.failures else 0)
