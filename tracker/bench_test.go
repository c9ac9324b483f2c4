package tracker

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/shoal-project/shoal/model"
	"github.com/shoal-project/shoal/tracker/client"
	"github.com/shoal-project/shoal/tracker/lease"
)

// BenchmarkAnnounce is one heartbeat with a bitmap of 10,000 pieces in a swarm of 1000 nodes,
// without the network.
func BenchmarkAnnounce(b *testing.B) {
	const nodes, size = 1000, model.MaxPieces * 16 << 20
	s, err := New(Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	h := s.Handler()
	have := lease.NewBitmap(model.NumPieces(size))
	for i := 0; i < model.NumPieces(size); i += 3 {
		have.Set(i)
	}
	var bodies [][]byte
	for i := range nodes {
		body, err := json.Marshal(client.Announce{
			Node: fmt.Sprint("node-", i), Addr: fmt.Sprintf("10.0.%d.%d:7071", i/250, i%250+1), Size: size, Have: have, Epoch: s.epoch, Want: 1,
		})
		if err != nil {
			b.Fatal(err)
		}
		bodies = append(bodies, body)
	}
	path := client.SwarmsPath + "/" + keyOf(1, model.Hash{}).String() + "/announce"
	for i := 0; b.Loop(); i++ {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(b.Context(), http.MethodPost, path, bytes.NewReader(bodies[i%nodes])))
		if w.Code != http.StatusOK {
			b.Fatal(w.Body)
		}
	}
}
