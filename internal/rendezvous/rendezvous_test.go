package rendezvous

import (
	"fmt"
	"slices"
	"testing"
)

func TestRank(t *testing.T) {
	names := []string{"a:1", "b:1", "c:1"}
	owned := map[string]int{}
	for i := range 3000 {
		key := fmt.Sprint("blob ", i)
		ranked := Rank(key, names)
		if sorted := slices.Sorted(slices.Values(ranked)); !slices.Equal(sorted, names) {
			t.Fatalf("%s: ranked %v", key, ranked)
		}
		if owner := Owner(key, names); owner != ranked[0] {
			t.Fatalf("%s: owner %s, ranked %v", key, owner, ranked)
		}
		owned[ranked[0]]++
		// Whoever goes leaves the order of the others as it is.
		without := slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == ranked[0] })
		if got := Rank(key, without); !slices.Equal(got, ranked[1:]) {
			t.Fatalf("%s: %v without %s, %v with it", key, got, ranked[0], ranked)
		}
	}
	for _, name := range names {
		if n := owned[name]; n < 900 || n > 1100 {
			t.Errorf("%s owns %d of 3000", name, n)
		}
	}
	if Owner("k", nil) != "" || len(Rank("k", nil)) != 0 {
		t.Error("nobody owns something")
	}
}
