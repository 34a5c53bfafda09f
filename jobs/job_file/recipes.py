"""Turns the entries of a menu in the job file into recipes."""

from actors.recipe import Interval, Recipe, by_cost, recipe_of
from jobs.job_file.keys import RecipeKeys
from jobs.job_file.read import Job


def recipe(entry: int | RecipeKeys) -> Recipe:
    """One entry."""
    return recipe_of(entry if isinstance(entry, int) else entry.model_dump())


def entry(recipe: Recipe) -> int | RecipeKeys:
    """A recipe as the job file has it."""
    plain = recipe.plain()
    return plain if isinstance(plain, int) else RecipeKeys(**plain)


def menu_of_job(job: Job) -> tuple[Recipe, ...] | None:
    """`steps.choices` by rising cost under the job's own guidance; None where the job names no menu."""
    sampling, choices = job.config.sampling, job.config.steps.choices
    return by_cost(map(recipe, choices), sampling.guidance_scale, interval_of(job)) if choices else None


def interval_of(job: Job) -> Interval | None:
    """`sampling.guidance_interval`."""
    given = job.config.sampling.guidance_interval
    return (given[0], given[1]) if given else None
