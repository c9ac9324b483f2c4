package yield

import (
	"math"

	"github.com/prometheus/client_golang/prometheus"
)

// collector reads the governor's state when it is asked for.
type collector struct {
	governor         *Governor
	limit, pressures *prometheus.Desc
}

func newCollector(g *Governor) *collector {
	return &collector{
		governor: g,
		limit: prometheus.NewDesc("shoal_yield_limit_bytes_per_second",
			"What transfers are limited to, +Inf where there is no limit.", []string{"direction"}, nil),
		pressures: prometheus.NewDesc("shoal_yield_pressure_ratio",
			"Share of the time in which the serving pods stalled, as last measured.", []string{"resource"}, nil),
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.limit
	ch <- c.pressures
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	p := c.governor.Pressure()
	for name, n := range map[string]int64{
		"download": p.Limits.Download, "upload": p.Limits.Upload, "background": p.Limits.Background,
	} {
		v := float64(n)
		if n >= Unlimited {
			v = math.Inf(1)
		}
		ch <- prometheus.MustNewConstMetric(c.limit, prometheus.GaugeValue, v, name)
	}
	for i, share := range p.Stalls {
		ch <- prometheus.MustNewConstMetric(c.pressures, prometheus.GaugeValue, share, Resource(i).String())
	}
}
