package lease

import (
	"fmt"
	"testing"
	"time"
)

// BenchmarkAnnounce is one announce (Expire, Report, Grant) among 1000 nodes, each of which got
// some pieces since its last one. Production swarms have 10,000 pieces at most.
func BenchmarkAnnounce(b *testing.B) {
	const nodes = 1000
	for _, pieces := range []int{10_000, 100_000} {
		b.Run(fmt.Sprint(pieces), func(b *testing.B) {
			var table *Table
			var have []Bitmap
			var open [][]int
			var now time.Time
			granted := 0
			for i := 0; b.Loop(); i++ {
				if table == nil || table.stats.Held == pieces {
					table = New(pieces, Config{}, time.Time{})
					have, open, granted = make([]Bitmap, nodes), make([][]int, nodes), 0
					for n := range have {
						have[n] = NewBitmap(pieces)
					}
				}
				n := i % nodes
				for _, p := range open[n] {
					have[n].Set(p)
				}
				for p := max(0, granted-2*nodes); p < granted-nodes; p += 10 { // from peers
					have[n].Set(p)
				}
				now = now.Add(500 * time.Microsecond)
				name := fmt.Sprint(n)
				table.Expire(now)
				table.Report(name, "", have[n], nil, nil, now)
				open[n] = piecesOf(table.Grant(name, Want{Origin: 1}, now))
				granted += len(open[n])
			}
		})
	}
}

// BenchmarkDoubts is a grant to a node that doubts all of its fifty peers, who hold half of the
// pieces for long: the upstream stalls and nobody gets anything new.

func BenchmarkDoubts(b *testing.B) {
	const pieces, peers = 10_000, 50
	now := time.Unix(1_700_000_000, 0)
	table := New(pieces, Config{}, time.Time{})
	have := NewBitmap(pieces)
	for i := range pieces / 2 {
		have.Set(2 * i)
	}
	var names []string
	for i := range peers {
		names = append(names, fmt.Sprint(i))
		table.Report(names[i], "", have, nil, nil, now)
	}
	table.Report("other", "", have, nil, nil, now) // so that not one of the pieces is to be leased again
	table.Report("asks", "", NewBitmap(pieces), nil, nil, now)
	table.Doubt("asks", names, false)
	for b.Loop() {
		table.zones[0].doubtful(table.nodes["asks"])
	}
}
