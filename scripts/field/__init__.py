"""How peers do it, written anew as small and as faithfully as can be: what mmrec is compared with, and never imports."""
