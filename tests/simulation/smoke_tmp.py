import sys, tempfile, time
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parents[1]/"unit"))
from world import *
async def main(d):
    async with World(Path(d)) as w:
        await w.create(w.a, "vol")
        await w.write_once(w.a, "vol")
        await w.write_once(w.b, "vol", b"y")
        print(w.record("vol").grant, w.contents("vol"))
        print(len(w.steps)); print([f"{s.of}:{s.label}" for s in w.steps])
        print((await w.move(w.c, "vol", "c"))[-1].phase)
        await w.remove(w.b, "vol"); 
        print((await w.restore(w.b, "vol")).grant)
        print(w.a.up.catalog.nodes()[0].name, [f.what for f in await w.c.ask(lambda r: r.doctor.examine())])
t=time.time()
with tempfile.TemporaryDirectory() as d: run_virtual(main(d))
print(time.time()-t)
