import pytest
from fuzz_helpers import Fuzzer

COUNTS = "commands by exit code"


@pytest.fixture
def fuzz(tmp_path, request):
    """Runs commands on generated files; its counts are shown at the end of the session, by whichever process ran it."""
    fuzzer = Fuzzer(tmp_path / "fuzz")
    yield fuzzer
    fuzzer.close()
    request.node.user_properties.append((COUNTS, dict(sorted(fuzzer.counts.items()))))


def pytest_terminal_summary(terminalreporter):
    """A line a test: how many commands it ran, by exit code."""
    reports = [report for found in terminalreporter.stats.values() for report in found if hasattr(report, "when")]
    counts = {
        report.nodeid: dict(report.user_properties).get(COUNTS) for report in reports if report.when == "teardown"
    }
    if any(counts.values()):
        terminalreporter.section(COUNTS)
    for name, found in sorted(counts.items()):
        if found is not None:
            terminalreporter.line(f"{name.split('::')[-1]}: {found}")
