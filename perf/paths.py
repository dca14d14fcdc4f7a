"""AF_XDP beside every other path of packets: `xdpkit bench paths`, with a page and JSON beside it.

python perf/paths.py [--quick] [--sizes 64,1518] [--only afxdp,recvfrom] ...   # docs/performance.md
"""

import sys

from xdpkit.cli.main import main

if __name__ == "__main__":
    given = sys.argv[1:]
    sys.argv[1:] = ["bench", "paths", *(given or ["--html", "paths.html", "-o", "paths.json"])]
    main()
