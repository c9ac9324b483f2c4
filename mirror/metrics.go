package mirror

import "github.com/prometheus/client_golang/prometheus"

// metrics are the mirror's own; those of the HTTP server are cmd's.
type metrics struct {
	upstreamBytes    prometheus.Counter
	upstreamRequests *prometheus.CounterVec // of manifests and referrers, by result
	sentBytes        prometheus.Counter
	requests         *prometheus.CounterVec // for blobs, by result
	fills            prometheus.Counter
	fillsEnded       *prometheus.CounterVec // by result
	filling          prometheus.Gauge
	staleTags        prometheus.Counter
	pinned           prometheus.Gauge
}

func newMetrics() *metrics {
	name := func(n string) string { return prometheus.BuildFQName("shoal", "mirror", n) }
	counter := func(n, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name(n), Help: help})
	}
	counters := func(n, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name(n), Help: help}, []string{label})
	}
	return &metrics{
		upstreamBytes:    counter("upstream_bytes_total", "Body bytes of blobs that were read from upstream registries."),
		upstreamRequests: counters("upstream_requests_total", "Requests for manifests and referrers to upstream registries, by result (ok, refused, down).", "result"),
		sentBytes:        counter("sent_bytes_total", "Body bytes of blobs that were sent to clients."),
		requests:         counters("blob_requests_total", "Requests for blobs, by result: hit (on the disk), join (arriving), fill (started it), error.", "result"),
		fills:            counter("fills_total", "Fills that were started, after a restart again."),
		fillsEnded:       counters("fills_ended_total", "Fills that ended, by result (ok, error, wrong_bytes).", "result"),
		filling:          prometheus.NewGauge(prometheus.GaugeOpts{Name: name("fills_running"), Help: "Fills that are running."}),
		staleTags:        counter("stale_tags_total", "Tags that were answered with the last known digest because upstream is down."),
		pinned:           prometheus.NewGauge(prometheus.GaugeOpts{Name: name("pinned_blobs"), Help: "Blobs that desired models need, here or still to come: they are not removed."}),
	}
}

func (m *metrics) register(r prometheus.Registerer) error {
	for _, c := range []prometheus.Collector{
		m.upstreamBytes, m.upstreamRequests, m.sentBytes, m.requests, m.fills, m.fillsEnded, m.filling, m.staleTags, m.pinned,
	} {
		if err := r.Register(c); err != nil {
			return err
		}
	}
	return nil
}
